/** What the rows of a file are, told by their keys (JSON) or column names (CSV). Pure. */
import type { RowKind } from "@fettle/contract";
import { suggestion } from "./nearest.js";

/** `columns` maps our name to the file's: `{ text: "sentence", label: "class" }`. */
export interface RowShape {
  kind: RowKind;
  columns: Readonly<Record<string, string>>;
}

const textNames = ["text", "sentence", "content", "review", "comment", "message", "utterance", "document"];
const labelNames = ["label", "class", "category", "intent", "sentiment"];

/** Tried from the top; a row is of the first shape whose names it all has. Case and spaces around a name do not matter. */
const shapes: readonly {
  kind: RowKind;
  needs: Readonly<Record<string, readonly string[]>>;
  may?: Readonly<Record<string, readonly string[]>>;
  /** No other key but `provenance`: a text with a misspelt label is not a plain text. */
  alone?: boolean;
}[] = [
  { kind: "chat", needs: { messages: ["messages"] } },
  {
    kind: "preference",
    needs: {
      input: ["input"],
      preferred: ["preferred_output", "preferred_completion"],
      non_preferred: ["non_preferred_output", "non_preferred_completion"],
    },
  },
  {
    kind: "preference",
    needs: { prompt: ["prompt"], preferred: ["chosen"], non_preferred: ["rejected"] },
    may: { tools: ["tools"] },
  },
  { kind: "pair", needs: { prompt: ["prompt"], completion: ["completion", "response"] } },
  {
    kind: "ranking",
    needs: { chosen_text: ["chosen_text"], rejected_text: ["rejected_text"] },
    may: { prompt: ["prompt"] },
  },
  { kind: "similarity", needs: { anchor: ["anchor"], positive: ["positive"] }, may: { negative: ["negative"] } },
  { kind: "entities", needs: { text: textNames, entities: ["entities", "spans"] } },
  { kind: "answers", needs: { question: ["question"], context: ["context"], answers: ["answers"] } },
  {
    kind: "answers",
    needs: { question: ["question"], context: ["context"], answer_text: ["answer"], answer_start: ["answer_start"] },
  },
  { kind: "pair", needs: { prompt: ["source"], completion: ["target"] } },
  { kind: "pair", needs: { prompt: ["question"], completion: ["answer"] } },
  {
    kind: "pair",
    needs: { prompt: ["instruction"], completion: ["output", "response"] },
    may: { context: ["input", "context"] },
  },
  {
    kind: "classification",
    needs: { text: ["sentence1", "premise"], text_pair: ["sentence2", "hypothesis"], label: labelNames },
  },
  { kind: "classification", needs: { text: textNames, label: labelNames }, may: { text_pair: ["text_pair"] } },
  { kind: "multilabel", needs: { text: textNames, labels: ["labels"] }, may: { text_pair: ["text_pair"] } },
  {
    kind: "score",
    needs: { text: ["sentence1", "premise"], text_pair: ["sentence2", "hypothesis"], score: ["score"] },
  },
  { kind: "score", needs: { text: textNames, score: ["score"] }, may: { text_pair: ["text_pair"] } },
  { kind: "pair", needs: { prompt: ["input"], completion: ["output"] } },
  { kind: "text", needs: { text: ["text"] }, alone: true },
];

/** What stands beside a plain text and says where it is from. */
const provenance = ["id", "source", "url", "title", "meta", "metadata", "lang", "language", "date", "timestamp"];

/** Null when the keys fit no shape. */
export function shapeOf(keys: readonly string[]): RowShape | null {
  const actual = new Map(keys.map((key) => [key.trim().toLowerCase(), key]));
  const find = (names: readonly string[]): string | undefined =>
    names.map((name) => actual.get(name)).find((key) => key !== undefined);
  for (const { kind, needs, may, alone } of shapes) {
    const needed = Object.entries(needs).map(([ours, names]) => [ours, find(names)] as const);
    if (needed.some(([, key]) => key === undefined)) continue;
    const optional = Object.entries({ ...may, group: ["group", "group_id"] }).map(
      ([ours, names]) => [ours, find(names)] as const,
    );
    const columns = [...needed, ...optional].filter(
      (entry): entry is readonly [string, string] => entry[1] !== undefined,
    );
    const used = columns.map(([, key]) => key);
    if (alone === true && keys.some((key) => !used.includes(key) && !provenance.includes(key.trim().toLowerCase())))
      continue;
    return { kind, columns: Object.fromEntries(columns) };
  }
  return null;
}

/** `text from "sentence", label from "class"`: for the report. */
export const describeShape = ({ columns }: RowShape): string =>
  Object.entries(columns)
    .map(([ours, theirs]) => `${ours} from "${theirs}"`)
    .join(", ");

export const expectedShapes = '"messages", or "prompt" and "completion", or "text" and "label"';

const preferenceNames = [
  ["preferred_output", "non_preferred_output"],
  ["preferred_completion", "non_preferred_completion"],
  ["chosen", "rejected"],
] as const;

/** What to do about keys that fit no shape: what is missing, or the nearest name. */
export function shapeAdvice(keys: readonly string[]): string {
  const preference = preferenceNames.find((names) => names.some((name) => keys.includes(name)));
  if (preference !== undefined) {
    const asked = preference[0] === "chosen" ? "prompt" : "input";
    const missing = [asked, ...preference].filter((name) => !keys.includes(name));
    return `A row of preferences has "${asked}", "${preference[0]}" and "${preference[1]}": add ${missing.map((name) => `"${name}"`).join(" and ")}.`;
  }
  if (keys.includes("conversations"))
    return 'Rename "conversations" to "messages", "from" to "role" (human is "user", gpt is "assistant") and "value" to "content".';
  const known = [...new Set(shapes.flatMap(({ needs }) => Object.values(needs).flat()))];
  for (const key of keys) {
    const near = suggestion(key, known);
    if (near.startsWith(" Did you mean") && !known.includes(key.toLowerCase()))
      return `Rename the key "${key.slice(0, 40)}".${near}`;
  }
  return `Rename the keys, or add the missing one.`;
}
