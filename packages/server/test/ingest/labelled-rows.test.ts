import { describe, expect, it } from "vitest";
import { readAll } from "./read.js";

const lines = (...rows: unknown[]): string => rows.map((row) => `${JSON.stringify(row)}\n`).join("");

describe("rows of tasks with labels, numbers, spans and pairs", () => {
  it.each([
    ["multilabel", { text: "a", labels: ["x", "y", "x", 3] }, { text: "a", labels: ["x", "y", "3"] }],
    ["multilabel", { sentence: "a", labels: [] }, { text: "a", labels: [] }],
    ["score", { sentence1: "a", sentence2: "b", score: 2.5 }, { text: "a", text_pair: "b", score: 2.5 }],
    ["ranking", { chosen_text: "a", rejected_text: "b" }, { chosen_text: "a", rejected_text: "b" }],
    [
      "ranking",
      { prompt: "p", chosen_text: "a", rejected_text: "b" },
      { prompt: "p", chosen_text: "a", rejected_text: "b" },
    ],
    [
      "entities",
      {
        text: "\u{1F600} Bern, Köln",
        entities: [
          { start: 8, end: 12, label: "city" },
          { start: 2, end: 6, label: "city" },
        ],
      },
      {
        text: "\u{1F600} Bern, Köln",
        entities: [
          { start: 2, end: 6, label: "city" },
          { start: 8, end: 12, label: "city" },
        ],
      },
    ],
    [
      "answers",
      { question: "where?", context: "\u{1F600} in Bern", answers: { text: ["Bern"], answer_start: [5] } },
      { question: "where?", context: "\u{1F600} in Bern", answers: [{ start: 5, text: "Bern" }] },
    ],
    [
      "answers",
      { question: "where?", context: "in Bern", answers: [] },
      { question: "where?", context: "in Bern", answers: [] },
    ],
    ["similarity", { anchor: "a", positive: "b", negative: "c" }, { anchor: "a", positive: "b", negative: "c" }],
    ["similarity", { anchor: "a", positive: "b" }, { anchor: "a", positive: "b" }],
  ])("reads %s rows: %j", async (kind, given, row) => {
    const read = await readAll(lines(given));
    expect(read.told).toEqual([]);
    expect(read.kind).toBe(kind);
    expect(read.rows).toEqual([{ line: 1, ...row }]);
  });

  it("reads scores and answers from a CSV file", async () => {
    expect((await readAll("text,score\na,0.5\n", { name: "x.csv" })).rows).toEqual([
      { line: 2, text: "a", score: 0.5 },
    ]);
    const csv = "question,context,answer,answer_start\nwhere?,in Bern,Bern,3\nwho?,in Bern,,\n";
    expect((await readAll(csv, { name: "x.csv" })).rows.map((row) => "answers" in row && row.answers)).toEqual([
      [{ start: 3, text: "Bern" }],
      [],
    ]);
  });

  it("counts the labels of entities and of several labels", async () => {
    const entities = [{ start: 0, end: 1, label: "x" }];
    expect((await readAll(lines({ text: "a b", entities }, { text: "c", entities: [] }))).labels).toEqual({ x: 1 });
    expect((await readAll(lines({ text: "a", labels: ["x", "y"] }, { text: "b", labels: ["y"] }))).labels).toEqual({
      x: 1,
      y: 2,
    });
  });

  const good = { text: "in Bern", entities: [] };
  const context = "in Bern";
  it.each([
    [{ text: "a", labels: "x" }, 'labels is a text: expected a list of labels. Write "labels": ["first", "second"]'],
    [{ text: "a", labels: ["x", null] }, "labels[1] is null: expected the name of one class."],
    [{ text: "a", score: "much" }, 'score is "much": expected a number'],
    [{ text: "a", score: null }, "score is null: expected a number"],
    [{ chosen_text: "a", rejected_text: 4 }, "rejected_text is a number: expected a text."],
    [{ anchor: "a", positive: "" }, "positive is empty: expected a text."],
    [{ text: "a", entities: {} }, "entities is an object: expected a list of entities."],
    [{ text: "a", entities: [[0, 1]] }, "entities[0] is a list: expected an object with start, end and label."],
    [
      { text: "\u{1F600}b", entities: [{ start: 1, end: 3, label: "x" }] },
      "entities[0] goes from 1 to 3: expected whole numbers with 0 <= start < end <= 2, the text's length in characters.",
    ],
    [{ text: "ab", entities: [{ start: 1, end: 1, label: "x" }] }, "entities[0] goes from 1 to 1"],
    [{ text: "ab", entities: [{ start: 0, end: 1 }] }, "entities[0].label is missing"],
    [
      {
        text: "abcd",
        entities: [
          { start: 2, end: 4, label: "x" },
          { start: 0, end: 3, label: "y" },
        ],
      },
      "entities[0] (2 to 4) overlaps entities[1] (0 to 3): expected entities apart from each other. Keep one of them.",
    ],
    [{ question: "?", context, answers: "Bern" }, "answers is a text: expected a list of answers."],
    [
      { question: "?", context, answers: [{ start: 2, text: "Bern" }] },
      'answers[0] says "Bern" at 2, where the context has " Ber": expected the answer\'s own words and the character where they begin. It begins at 3',
    ],
    [{ question: "?", context, answers: [{ start: 0, text: "Köln" }] }, "Copy the answer out of the context."],
  ])("refuses %j by its field", async (row, told) => {
    const read = await readAll(lines(row));
    expect(read.rows).toEqual([]);
    expect(read.told[0]).toContain(`Line 1: ${told}`.replace(/^Line 1: (Copy)/, "$1"));
  });

  it("refuses another kind in the same file", async () => {
    const read = await readAll(lines(good, { anchor: "a", positive: "b" }));
    expect(read.told).toEqual([
      expect.stringContaining("Line 2: This is a similarity row, but the rows before it are entities rows"),
    ]);
  });
});
