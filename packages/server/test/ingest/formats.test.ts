import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { readAll } from "./read.js";

const chat = (text: string): string =>
  JSON.stringify({
    messages: [
      { role: "user", content: text },
      { role: "assistant", content: `${text}!` },
    ],
  });
const threeLines = `${chat("one")}\n${chat("zwei ä€😀")}\n${chat("three")}\n`;
const utf16be = (text: string): Buffer => Buffer.from(text, "utf16le").swap16();

describe("what is accepted is told", () => {
  it.each([
    ["plain", Buffer.from(threeLines), []],
    [
      "UTF-8 with BOM",
      Buffer.from(`\ufeff${threeLines}`),
      ["The file begins with a UTF-8 byte order mark (BOM): accepted."],
    ],
    [
      "UTF-16 LE with BOM",
      Buffer.from(`\ufeff${threeLines}`, "utf16le"),
      ["The file is UTF-16 (little-endian): accepted, read as UTF-8."],
    ],
    [
      "UTF-16 BE with BOM",
      utf16be(`\ufeff${threeLines}`),
      ["The file is UTF-16 (big-endian): accepted, read as UTF-8."],
    ],
    [
      "UTF-16 LE without BOM",
      Buffer.from(threeLines, "utf16le"),
      ["The file is UTF-16 (little-endian): accepted, read as UTF-8."],
    ],
    ["UTF-16 BE without BOM", utf16be(threeLines), ["The file is UTF-16 (big-endian): accepted, read as UTF-8."]],
    [
      "CRLF",
      Buffer.from(threeLines.replaceAll("\n", "\r\n")),
      ["Lines end with CRLF, as Windows writes them: accepted (3)."],
    ],
    [
      "CR",
      Buffer.from(threeLines.replaceAll("\n", "\r")),
      ["Lines end with CR, as old Macs wrote them: accepted (3)."],
    ],
    [
      "blank lines",
      Buffer.from(`\n${threeLines.replaceAll("\n", "\n \n")}\n\n`),
      ["Blank lines between rows: accepted (3)."],
    ],
    ["no last line break", Buffer.from(threeLines.trimEnd()), []],
    [
      "JSON array",
      Buffer.from(`[\n${threeLines.trimEnd().replaceAll("\n", ",\n")}\n]\n`),
      ["The file is one JSON array instead of one object a line: accepted."],
    ],
    [
      "JSON array, pretty",
      Buffer.from(
        JSON.stringify(
          threeLines
            .trim()
            .split("\n")
            .map((line) => JSON.parse(line)),
          null,
          2,
        ),
      ),
      ["The file is one JSON array instead of one object a line: accepted."],
    ],
  ])("%s, in chunks of any size", async (_name, bytes, notices) => {
    for (const chunk of [1, 2, 3, 7, 100_000]) {
      const read = await readAll(bytes, { chunk });
      expect(read.told).toEqual([]);
      expect(read.notices).toEqual(notices);
      expect(read.rows.map((row) => ("messages" in row ? row.messages[0]?.content : null))).toEqual([
        "one",
        "zwei ä€😀",
        "three",
      ]);
    }
  });

  it("names the lines of the original file", async () => {
    const read = await readAll(`\n${chat("a")}\n\n${chat("b")}`);
    expect(read.rows.map((row) => row.line)).toEqual([2, 4]);
    const pretty = await readAll(`[\n  ${chat("a")},\n\n  ${chat("b")}]`);
    expect(pretty.rows.map((row) => row.line)).toEqual([2, 4]);
  });

  it("reads CSV with any usual delimiter, quotes and line breaks inside fields", async () => {
    const read = await readAll('text;label\n"a ""quoted""; text";spam\n"two\nlines";ham\n\nlast;spam', {
      name: "x.csv",
    });
    expect(read.told).toEqual([]);
    expect(read.rows).toEqual([
      { line: 2, text: 'a "quoted"; text', label: "spam" },
      { line: 3, text: "two\nlines", label: "ham" },
      { line: 6, text: "last", label: "spam" },
    ]);
    expect(read).toMatchObject({
      format: "csv",
      kind: "classification",
      labels: { ham: 1, spam: 2 },
      notices: ['Fields are separated by ";": accepted.'],
    });
  });

  it.each([
    ["Sentence,Class", "classification", 'Columns: text from "Sentence", label from "Class".'],
    ["question,answer", "pair", 'Columns: prompt from "question", completion from "answer".'],
    ["source,target", "pair", 'Columns: prompt from "source", completion from "target".'],
    ["input,output", "pair", 'Columns: prompt from "input", completion from "output".'],
  ])("guesses the columns %s and says so", async (header, kind, notice) => {
    expect(await readAll(`${header}\na,b\n`, { name: "x.csv" })).toMatchObject({
      kind,
      numUsable: 1,
      notices: [notice],
    });
  });

  it("tells which keys are not used, and labels that look alike", async () => {
    const read = await readAll(
      '{"text":"a","label":"Spam","id":1}\n{"text":"b","label":"spam","id":2}\n{"text":"c","label":1}\n',
    );
    expect(read.labels).toEqual({ "1": 1, Spam: 1, spam: 1 });
    expect(read.notices).toEqual([
      'The labels "Spam" and "spam" differ only in case: they are kept as different classes.',
      "Not used for training: id (2 rows).",
    ]);
  });
});

describe("prototype names are data", () => {
  it("in JSON and CSV", async () => {
    const json = await readAll(
      '{"__proto__":{"x":1},"constructor":{"prototype":{"x":1}},"text":"a","label":"__proto__"}\n',
    );
    expect(json.labels).toEqual(JSON.parse('{"__proto__":1}'));
    expect(json.notices).toEqual(["Not used for training: __proto__ (1 row), constructor (1 row)."]);
    const csv = await readAll("text,label,__proto__,constructor\na,b,c,d\n", { name: "x.csv" });
    expect(csv.rows).toEqual([{ line: 2, text: "a", label: "b" }]);
    expect(({} as { x?: number }).x).toBeUndefined();
  });
});

describe("properties", () => {
  const anyText = fc
    .string({ unit: "grapheme", minLength: 1 })
    .filter((text) => text.trim() !== "" && !text.includes("\u0000"));

  it("JSONL: chunk borders never matter, and every row comes back as it was", () =>
    fc.assert(
      fc.asyncProperty(
        fc.array(fc.record({ text: anyText, label: fc.constantFrom("a", "b") }), { minLength: 1 }),
        fc.integer({ min: 1, max: 9 }),
        fc.constantFrom("\n", "\r\n", "\r"),
        async (rows, chunk, ending) => {
          const read = await readAll(rows.map((row) => JSON.stringify(row) + ending).join(""), { chunk });
          expect(read.faults).toEqual([]);
          expect(read.rows).toEqual(rows.map((row, index) => ({ line: index + 1, ...row })));
        },
      ),
      { numRuns: 60 },
    ));

  it("CSV: chunk borders never matter, and every field comes back as it was", () =>
    fc.assert(
      fc.asyncProperty(
        fc.array(
          anyText.filter((text) => !/[\r]/.test(text)),
          { minLength: 1 },
        ),
        fc.integer({ min: 1, max: 9 }),
        async (texts, chunk) => {
          const read = await readAll(
            `text,label\n${texts.map((text) => `"${text.replaceAll('"', '""')}",x\n`).join("")}`,
            { chunk, name: "x.csv" },
          );
          expect(read.faults).toEqual([]);
          expect(read.rows.map((row) => ("text" in row ? row.text : null))).toEqual(texts);
        },
      ),
      { numRuns: 60 },
    ));

  it("garbage bytes give faults, never a throw, whatever the chunks", () =>
    fc.assert(
      fc.asyncProperty(
        fc.uint8Array({ minLength: 1, maxLength: 300 }),
        fc.constantFrom("x.jsonl", "x.csv", "x"),
        fc.integer({ min: 1, max: 9 }),
        async (bytes, name, chunk) => {
          const whole = await readAll(Buffer.concat([Buffer.from("{"), bytes]), { name });
          const split = await readAll(Buffer.concat([Buffer.from("{"), bytes]), { name, chunk });
          expect(split).toEqual(whole);
        },
      ),
      { numRuns: 200 },
    ));
});
