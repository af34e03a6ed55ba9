/** What a labelled row says of its text: labels, a score, entities, answers. Every fault names its field. Pure. */
import type { AnswerRow, Entity } from "@fettle/contract";
import type { RowNotes } from "./chat-row.js";
import { isRecord, own, quoted, typeName } from "./fault.js";
import type { RowShape } from "./row-shape.js";

const maxLabelLength = 256;

/** Whole numbers, true and false are labels too, by their text. */
export function readLabel(value: Record<string, unknown>, shape: RowShape, notes: RowNotes): string | null {
  const key = shape.columns["label"] ?? "label";
  return labelOf(own(value, key), key, notes);
}

function labelOf(given: unknown, key: string, notes: RowNotes): string | null {
  const label = typeof given === "boolean" || Number.isSafeInteger(given) ? String(given) : given;
  if (typeof label !== "string") {
    notes.fault({
      path: key,
      rule: "label_not_text",
      message: `${key} is ${typeof given === "number" ? `the number ${given}` : typeName(given)}: expected the name of one class.`,
      fix: "Give one class name as text, or remove the row.",
    });
    return null;
  }
  const name = label.trim();
  if (name === "") {
    notes.fault({
      path: key,
      rule: "label_empty",
      message: `${key} is empty: expected the name of a class.`,
      fix: "Name the class, or remove the row.",
    });
    return null;
  }
  if (name.length > maxLabelLength) {
    notes.fault({
      path: key,
      rule: "label_too_long",
      message: `${key} has ${name.length} characters: expected at most ${maxLabelLength}.`,
      fix: "Is this the text column? Give the class a short name.",
    });
    return null;
  }
  return name;
}

/** None, one or several; the same one twice is one. */
export function readLabels(value: Record<string, unknown>, shape: RowShape, notes: RowNotes): string[] | null {
  const key = shape.columns["labels"] ?? "labels";
  const given = own(value, key);
  if (!Array.isArray(given)) {
    notes.fault({
      path: key,
      rule: "labels_not_list",
      message: `${key} is ${typeName(given)}: expected a list of labels.`,
      fix: 'Write "labels": ["first", "second"], or [] when none fits.',
    });
    return null;
  }
  const labels = given.map((label: unknown, index) => labelOf(label, `${key}[${index}]`, notes));
  return labels.some((label) => label === null) ? null : [...new Set(labels.filter((label) => label !== null))];
}

/** A number, or its text: CSV has no numbers. */
export function readScore(value: Record<string, unknown>, shape: RowShape, notes: RowNotes): number | null {
  const key = shape.columns["score"] ?? "score";
  const given = own(value, key);
  const score = typeof given === "string" && given.trim() !== "" ? Number(given) : given;
  if (typeof score === "number" && Number.isFinite(score) && Math.abs(score) <= 1e30) return score;
  notes.fault({
    path: key,
    rule: "score_not_number",
    message: `${key} is ${typeof given === "string" ? quoted(given) : typeName(given)}: expected a number from -1e30 to 1e30.`,
    fix: "Give the number, or remove the row.",
  });
  return null;
}

/** In the order of the text. Two that overlap, or one outside of the text, are faults. */
export function readEntities(
  value: Record<string, unknown>,
  { shape, text, notes }: { shape: RowShape; text: string; notes: RowNotes },
): Entity[] | null {
  const key = shape.columns["entities"] ?? "entities";
  const given = own(value, key);
  if (!Array.isArray(given)) {
    notes.fault({
      path: key,
      rule: "entities_not_list",
      message: `${key} is ${typeName(given)}: expected a list of entities.`,
      fix: 'Write "entities": [{"start": 0, "end": 4, "label": "city"}], or [] when there is none.',
    });
    return null;
  }
  const length = codePoints(text);
  const read = given.map((one: unknown, index) => readEntity(one, { path: `${key}[${index}]`, length, notes }));
  const placed = read
    .flatMap((entity, index) => (entity === null ? [] : [{ ...entity, index }]))
    .sort((a, b) => a.start - b.start);
  placed.forEach((entity, at) => {
    const before = placed[at - 1];
    if (before === undefined || before.end <= entity.start) return;
    notes.fault({
      path: `${key}[${entity.index}]`,
      rule: "entities_overlap",
      message: `${key}[${entity.index}] (${entity.start} to ${entity.end}) overlaps ${key}[${before.index}] (${before.start} to ${before.end}): expected entities apart from each other.`,
      fix: "Keep one of them.",
    });
  });
  if (notes.faults.length > 0) return null;
  return placed.map(({ start, end, label }) => ({ start, end, label }));
}

function readEntity(
  given: unknown,
  { path, length, notes }: { path: string; length: number; notes: RowNotes },
): Entity | null {
  if (!isRecord(given)) {
    notes.fault({
      path,
      rule: "entity_not_object",
      message: `${path} is ${typeName(given)}: expected an object with start, end and label.`,
      fix: 'Write {"start": 0, "end": 4, "label": "city"}.',
    });
    return null;
  }
  const [start, end] = [own(given, "start"), own(given, "end")];
  const label = labelOf(own(given, "label"), `${path}.label`, notes);
  const isSpan = Number.isSafeInteger(start) && Number.isSafeInteger(end);
  if (!isSpan || (start as number) < 0 || (end as number) <= (start as number) || (end as number) > length) {
    notes.fault({
      path,
      rule: "entity_outside",
      message: `${path} goes from ${quoted(start)} to ${quoted(end)}: expected whole numbers with 0 <= start < end <= ${length}, the text's length in characters.`,
      fix: "Count characters (Unicode code points) from 0; end is the first one after the entity.",
    });
    return null;
  }
  return label === null ? null : { start: start as number, end: end as number, label };
}

/** A list of `{start, text}`, SQuAD's `{text: [], answer_start: []}`, or one answer in two columns; none is allowed. */
export function readAnswers(
  value: Record<string, unknown>,
  { shape, context, notes }: { shape: RowShape; context: string; notes: RowNotes },
): AnswerRow["answers"] | null {
  const key = shape.columns["answers"] ?? shape.columns["answer_text"] ?? "answers";
  const found = answersGiven(value, shape);
  if (found === null) {
    notes.fault({
      path: key,
      rule: "answers_not_list",
      message: `${key} is ${typeName(own(value, key))}: expected a list of answers.`,
      fix: 'Write "answers": [{"start": 12, "text": "in Bern"}], or [] when the context holds none.',
    });
    return null;
  }
  const characters = [...context];
  const answers: AnswerRow["answers"] = [];
  found.forEach(({ start, text }, index) => {
    const path = `${key}[${index}]`;
    const begin = typeof start === "string" && start.trim() !== "" ? Number(start) : start;
    const isPlace = typeof text === "string" && text !== "" && Number.isSafeInteger(begin) && (begin as number) >= 0;
    const there = isPlace ? characters.slice(begin as number, (begin as number) + codePoints(text)).join("") : "";
    if (isPlace && there === text) {
      answers.push({ start: begin as number, text });
      return;
    }
    const at = typeof text === "string" && text !== "" ? context.indexOf(text) : -1;
    notes.fault({
      path,
      rule: "answer_not_there",
      message: `${path} says ${quoted(text)} at ${quoted(start)}, where the context has ${quoted(there)}: expected the answer's own words and the character where they begin.`,
      fix:
        at < 0
          ? "Copy the answer out of the context."
          : `It begins at ${codePoints(context.slice(0, at))}; characters are Unicode code points, counted from 0.`,
    });
  });
  return answers.length === found.length ? answers : null;
}

function answersGiven(value: Record<string, unknown>, shape: RowShape): { start: unknown; text: unknown }[] | null {
  const { answers: listKey, answer_text: textKey, answer_start: startKey } = shape.columns;
  if (listKey === undefined) {
    const text = own(value, textKey ?? "answer");
    return text === null || text === "" ? [] : [{ text, start: own(value, startKey ?? "answer_start") }];
  }
  const given = own(value, listKey);
  if (Array.isArray(given))
    return given.map((one: unknown) =>
      isRecord(one)
        ? { text: own(one, "text"), start: own(one, "start") ?? own(one, "answer_start") }
        : { text: one, start: null },
    );
  if (!isRecord(given)) return null;
  const [texts, starts] = [own(given, "text"), own(given, "answer_start")];
  if (!Array.isArray(texts) || !Array.isArray(starts) || texts.length !== starts.length) return null;
  return texts.map((text: unknown, index) => ({ text, start: starts[index] as unknown }));
}

const codePoints = (text: string): number => [...text].length;
