/** How good triage answers are: valid JSON, the strict shape, each field exactly as wanted. Pure. */
import { type Triage, triageFields, triageSchema } from "../triage/triage.js";
import { type Share, share } from "./share.js";

export interface TriageScore {
  num_rows: number;
  /** The whole answer parses as a JSON object. */
  valid_json: Share;
  /** It has exactly the four keys with allowed values. */
  valid_shape: Share;
  /** A field counts when the answer is JSON and the value is the wanted one, letter by letter. */
  product: Share;
  urgency: Share;
  language: Share;
  summary: Share;
  all_fields: Share;
}

export function scoreTriages(answers: readonly string[], wanted: readonly Triage[]): TriageScore {
  const parsed = answers.map(parseObject);
  const right = (field: keyof Triage): boolean[] =>
    parsed.map((answer, row) => answer !== null && answer[field] === wanted[row]?.[field]);
  const count = (flags: readonly boolean[]): Share => share(flags.filter(Boolean).length, wanted.length);
  const byField = Object.fromEntries(triageFields.map((field) => [field, right(field)])) as Record<
    keyof Triage,
    boolean[]
  >;
  return {
    num_rows: wanted.length,
    valid_json: count(parsed.map((answer) => answer !== null)),
    valid_shape: count(parsed.map((answer) => triageSchema.safeParse(answer).success)),
    product: count(byField.product),
    urgency: count(byField.urgency),
    language: count(byField.language),
    summary: count(byField.summary),
    all_fields: count(wanted.map((_, row) => triageFields.every((field) => byField[field][row]))),
  };
}

function parseObject(answer: string): Record<string, unknown> | null {
  try {
    const value: unknown = JSON.parse(answer.trim());
    return typeof value === "object" && value !== null && !Array.isArray(value)
      ? (value as Record<string, unknown>)
      : null;
  } catch {
    return null;
  }
}
