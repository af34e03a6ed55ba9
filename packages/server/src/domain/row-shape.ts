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
}[] = [
  { kind: "chat", needs: { messages: ["messages"] } },
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
];

/** Null when the keys fit no shape. */
export function shapeOf(keys: readonly string[]): RowShape | null {
  const actual = new Map(keys.map((key) => [key.trim().toLowerCase(), key]));
  const find = (names: readonly string[]): string | undefined =>
    names.map((name) => actual.get(name)).find((key) => key !== undefined);
  for (const { kind, needs, may } of shapes) {
    const needed = Object.entries(needs).map(([ours, names]) => [ours, find(names)] as const);
    if (needed.some(([, key]) => key === undefined)) continue;
    const optional = Object.entries({ ...may, group: ["group", "group_id"] }).map(
      ([ours, names]) => [ours, find(names)] as const,
    );
    const columns = [...needed, ...optional].filter(
      (entry): entry is readonly [string, string] => entry[1] !== undefined,
    );
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
  "preferred_output",
  "non_preferred_output",
  "preferred_completion",
  "non_preferred_completion",
  "chosen",
  "rejected",
];

/** What to do about keys that fit no shape: the nearest name, or why such data cannot be used yet. */
export function shapeAdvice(keys: readonly string[]): string {
  const preference = keys.find((key) => preferenceNames.includes(key));
  if (preference !== undefined)
    return `"${preference}" belongs to preference tuning (dpo), which is not built: give "messages" whose last turn is the preferred answer.`;
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
