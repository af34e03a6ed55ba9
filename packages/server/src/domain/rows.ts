/** One parsed row of a data file -> a canonical row, or every reason why not. Pure. */
import type { CanonicalRow, Fault, RowKind } from "@fettle/contract";
import { readChatRow, RowNotes } from "./chat-row.js";
import { isRecord, own, quoted, typeName } from "./fault.js";
import { readAnswers, readEntities, readLabel, readLabels, readScore } from "./labelled-row.js";
import { nearestName } from "./nearest.js";
import { readPreferenceRow } from "./preference-row.js";
import { expectedShapes, type RowShape, shapeAdvice, shapeOf } from "./row-shape.js";

export interface RowOutcome {
  row: CanonicalRow | null;
  faults: Fault[];
  /** Keys that training does not use, such as `id`: counted and told. */
  ignored: string[];
  /** The row's own shape; null when its keys fit none. */
  shape: RowShape | null;
}

/** Keys of a chat row besides `messages` that mean something. */
const chatKeys = ["messages", "tools", "functions", "group", "group_id"];

/** Remembers the shape of each set of keys, since most files have one. */
export class RowReader {
  readonly #shapes = new Map<string, RowShape | null>();

  /** `expected`: the kind of the file's earlier rows, once known; a row of another kind is a fault. */
  read(value: unknown, { line, expected }: { line: number; expected: RowKind | null }): RowOutcome {
    const notes = new RowNotes(line);
    if (!isRecord(value)) {
      notes.fault({
        path: "",
        rule: "row_not_object",
        message: `The row is ${typeName(value)}: expected an object with ${expectedShapes}.`,
        fix: 'Write each row as an object: {"messages": [...]}.',
      });
      return { row: null, faults: notes.faults, ignored: [], shape: null };
    }
    const keys = Object.keys(value);
    const shape = this.#shapeOf(keys);
    if (shape === null || (expected !== null && shape.kind !== expected)) {
      explainShape({ keys, shape, expected }, notes);
      return { row: null, faults: notes.faults, ignored: [], shape };
    }
    const row = readers[shape.kind](value, shape, notes);
    const used = shape.kind === "chat" ? chatKeys : Object.values(shape.columns);
    for (const key of keys) if (!used.includes(key)) notes.ignored.push(key);
    return { row: notes.faults.length === 0 ? row : null, faults: notes.faults, ignored: notes.ignored, shape };
  }

  #shapeOf(keys: readonly string[]): RowShape | null {
    const known = keys.join("\u0000");
    const found = this.#shapes.get(known);
    if (found !== undefined) return found;
    const shape = shapeOf(keys);
    if (this.#shapes.size < 1000 && known.length < 1000) this.#shapes.set(known, shape);
    return shape;
  }
}

const needed: Record<RowKind, readonly string[]> = {
  chat: ["messages"],
  pair: ["prompt", "completion"],
  classification: ["text", "label"],
  multilabel: ["text", "labels"],
  score: ["text", "score"],
  ranking: ["chosen_text", "rejected_text"],
  entities: ["text", "entities"],
  answers: ["question", "context", "answers"],
  similarity: ["anchor", "positive"],
  preference: ["input", "preferred_output", "non_preferred_output"],
  text: ["text"],
};

function explainShape(
  { keys, shape, expected }: { keys: readonly string[]; shape: RowShape | null; expected: RowKind | null },
  notes: RowNotes,
): void {
  if (shape !== null && expected !== null) {
    notes.fault({
      path: "",
      rule: "mixed_kinds",
      message: `This is a ${shape.kind} row, but the rows before it are ${expected} rows: expected one kind in a file.`,
      fix: "Move the rows of each kind to a file of their own.",
    });
    return;
  }
  const shown =
    keys.length === 0
      ? "no keys"
      : `the keys ${keys
          .slice(0, 8)
          .map((key) => quoted(key))
          .join(", ")}${keys.length > 8 ? " …" : ""}`;
  if (expected === null) {
    notes.fault({
      path: "",
      rule: "unknown_shape",
      message: `The row has ${shown}: expected ${expectedShapes}.`,
      fix: shapeAdvice(keys),
    });
    return;
  }
  const missing = needed[expected].filter((name) => !keys.some((key) => key.trim().toLowerCase() === name));
  const [first = needed[expected][0] ?? ""] = missing;
  const near = nearestName(first, keys);
  notes.fault({
    path: first,
    rule: "key_missing",
    message: `The row has ${shown}: expected ${needed[expected].map((name) => `"${name}"`).join(" and ")} as in the rows before it.`,
    fix:
      near === null || near === first
        ? `Add "${first}", or remove the row.`
        : `Rename "${near.slice(0, 40)}" to "${first}".`,
  });
}

type Read = (value: Record<string, unknown>, shape: RowShape, notes: RowNotes) => CanonicalRow | null;

const readers: Record<RowKind, Read> = {
  chat(value, shape, notes) {
    const row = readChatRow(value, notes);
    return row === null ? null : { line: notes.line, ...row, ...groupOf(value, shape, notes) };
  },
  preference(value, shape, notes) {
    const row = readPreferenceRow(value, shape, notes);
    return row === null ? null : { line: notes.line, ...row, ...groupOf(value, shape, notes) };
  },
  text(value, shape, notes) {
    const text = readText(value, { shape, name: "text", notes });
    return text === null ? null : { line: notes.line, text, ...groupOf(value, shape, notes) };
  },
  pair(value, shape, notes) {
    const instruction = readText(value, { shape, name: "prompt", notes });
    const context = shape.columns["context"] === undefined ? undefined : own(value, shape.columns["context"]);
    const completion = readText(value, { shape, name: "completion", notes });
    if (instruction === null || completion === null) return null;
    const prompt = typeof context === "string" && context.trim() !== "" ? `${instruction}\n\n${context}` : instruction;
    return { line: notes.line, prompt, completion, ...groupOf(value, shape, notes) };
  },
  classification(value, shape, notes) {
    const text = readText(value, { shape, name: "text", notes });
    const pairColumn = shape.columns["text_pair"];
    const pair =
      pairColumn === undefined || own(value, pairColumn) === undefined
        ? undefined
        : readText(value, { shape, name: "text_pair", notes });
    const label = readLabel(value, shape, notes);
    if (text === null || label === null || pair === null) return null;
    return {
      line: notes.line,
      text,
      ...(pair === undefined ? {} : { text_pair: pair }),
      label,
      ...groupOf(value, shape, notes),
    };
  },
  multilabel(value, shape, notes) {
    const text = readText(value, { shape, name: "text", notes });
    const pair = readOptional(value, { shape, name: "text_pair", notes });
    const labels = readLabels(value, shape, notes);
    if (text === null || pair === null || labels === null) return null;
    return { line: notes.line, text, ...pair, labels, ...groupOf(value, shape, notes) };
  },
  score(value, shape, notes) {
    const text = readText(value, { shape, name: "text", notes });
    const pair = readOptional(value, { shape, name: "text_pair", notes });
    const score = readScore(value, shape, notes);
    if (text === null || pair === null || score === null) return null;
    return { line: notes.line, text, ...pair, score, ...groupOf(value, shape, notes) };
  },
  ranking(value, shape, notes) {
    const prompt = readOptional(value, { shape, name: "prompt", notes });
    const better = readText(value, { shape, name: "chosen_text", notes });
    const worse = readText(value, { shape, name: "rejected_text", notes });
    if (prompt === null || better === null || worse === null) return null;
    return {
      line: notes.line,
      ...prompt,
      chosen_text: better,
      rejected_text: worse,
      ...groupOf(value, shape, notes),
    };
  },
  entities(value, shape, notes) {
    const text = readText(value, { shape, name: "text", notes });
    const entities = text === null ? null : readEntities(value, { shape, text, notes });
    if (text === null || entities === null) return null;
    return { line: notes.line, text, entities, ...groupOf(value, shape, notes) };
  },
  answers(value, shape, notes) {
    const question = readText(value, { shape, name: "question", notes });
    const context = readText(value, { shape, name: "context", notes });
    const answers = context === null ? null : readAnswers(value, { shape, context, notes });
    if (question === null || context === null || answers === null) return null;
    return { line: notes.line, question, context, answers, ...groupOf(value, shape, notes) };
  },
  similarity(value, shape, notes) {
    const anchor = readText(value, { shape, name: "anchor", notes });
    const positive = readText(value, { shape, name: "positive", notes });
    const negative = readOptional(value, { shape, name: "negative", notes });
    if (anchor === null || positive === null || negative === null) return null;
    return { line: notes.line, anchor, positive, ...negative, ...groupOf(value, shape, notes) };
  },
};

/** The text under its name, nothing when the row has none, null when it is none. */
function readOptional(
  value: Record<string, unknown>,
  { shape, name, notes }: { shape: RowShape; name: string; notes: RowNotes },
): Record<string, string> | null {
  const key = shape.columns[name];
  if (key === undefined || (own(value, key) ?? "") === "") return {};
  const text = readText(value, { shape, name, notes });
  return text === null ? null : { [name]: text };
}

function readText(
  value: Record<string, unknown>,
  { shape, name, notes }: { shape: RowShape; name: string; notes: RowNotes },
): string | null {
  const key = shape.columns[name] ?? name;
  const text = own(value, key);
  if (typeof text !== "string") {
    notes.fault({
      path: key,
      rule: `${name}_not_text`,
      message: `${key} is ${typeName(text)}: expected a text.`,
      fix: "Put it in quotes, or remove the row.",
    });
    return null;
  }
  if (text.trim() === "") {
    notes.fault({
      path: key,
      rule: `${name}_empty`,
      message: `${key} is empty: expected a text.`,
      fix: "Write the text, or remove the row.",
    });
    return null;
  }
  return text;
}

function groupOf(value: Record<string, unknown>, shape: RowShape, notes: RowNotes): { group?: string } {
  const key = shape.columns["group"];
  const group = key === undefined ? undefined : own(value, key);
  if (key === undefined || group === undefined || group === null || group === "") return {};
  if (typeof group === "string" && group.length <= 1024) return { group };
  if (Number.isSafeInteger(group)) return { group: String(group) };
  notes.fault({
    path: key,
    rule: "group_invalid",
    message: `${key} is ${typeof group === "string" ? `a text of ${group.length} characters` : typeName(group)}: expected a text of at most 1024 characters.`,
    fix: "Give rows that belong together (same customer, same thread) the same short group.",
  });
  return {};
}
