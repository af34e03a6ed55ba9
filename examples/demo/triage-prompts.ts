/** The prompts that the tuned model has to beat: the same task, explained in words, without and with examples. */
import { type TriageRow, toChatRow } from "../triage/generate.js";
import { languages, products, systemPrompt, urgencies } from "../triage/triage.js";

export interface Message {
  role: "system" | "user" | "assistant";
  content: string;
}

const instructions = `You triage support messages. Answer with one line of JSON and nothing else, with exactly these keys:
"product": one of ${products.join(", ")}
"urgency": one of ${urgencies.join(", ")}
"language": the language of the message, one of ${languages.join(", ")}
"summary": the problem in a few English words`;

export const zeroShot = (row: TriageRow): Message[] => [
  { role: "system", content: instructions },
  { role: "user", content: row.message },
];

/** Examples come from the training rows, each of another product. */
export function fewShot(train: readonly TriageRow[], numExamples: number): (row: TriageRow) => Message[] {
  const examples: TriageRow[] = [];
  for (const row of train) {
    const isNew = examples.every(
      ({ triage }) => triage.product !== row.triage.product && triage.language !== row.triage.language,
    );
    if (isNew && examples.length < numExamples) examples.push(row);
  }
  const turns = examples.flatMap((row) => toChatRow(row).messages.slice(1));
  return (row) => [{ role: "system", content: instructions }, ...turns, { role: "user", content: row.message }];
}

/** What the tuned model was trained on, without the answer. */
export const tunedPrompt = (row: TriageRow): Message[] => [
  { role: "system", content: systemPrompt },
  { role: "user", content: row.message },
];
