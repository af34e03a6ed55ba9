import { describe, expect, it } from "vitest";
import { readAll } from "./read.js";

const good = '{"text":"good","label":"row"}';
const duplicateFix = "Keep one of them: readers differ in which one they take.";

describe("broken lines, with line and column", () => {
  it.each([
    [
      '{"messages": [}',
      `Line 2, column 15: Expected a value, found "}". Correct the JSON here: a missing comma, colon or quote, or a quote inside a text that is not written as \\".`,
    ],
    [
      '{"text": "a" "label": "b"}',
      `Line 2, column 14: Expected "," or "}", found a quote. Correct the JSON here: a missing comma, colon or quote, or a quote inside a text that is not written as \\".`,
    ],
    ['{"text": "äöü", }', 'Line 2, column 17: Expected a key in double quotes, found "}". Remove the comma before it.'],
    [
      `{'text': 'a'}`,
      `Line 2, column 2: Expected a key in double quotes, found "'". Use double quotes: JSON has no single quotes. In Python, write rows with json.dumps.`,
    ],
    [
      '{"text": "a", "label": None}',
      'Line 2, column 24: "None" is not JSON. Write null. In Python, write rows with json.dumps.',
    ],
    [
      '{"text": "a", "label": NaN}',
      'Line 2, column 24: "NaN" is not JSON: expected a number, a text or null. Write null, or leave the key out.',
    ],
    [
      '{"text": "a", "label": -Infinity}',
      'Line 2, column 24: "-Infinity" is not JSON: expected a number, a text or null. Write null, or leave the key out.',
    ],
    [
      '{"text": "a", "label": 1e999}',
      "Line 2, column 24: The number 1e999 is too large. Write it as a text, or remove it.",
    ],
    [
      '{"text": "a", "label": 01}',
      'Line 2, column 24: "01" is not a JSON value. Write the number plainly, such as 12 or -0.5, or put it in quotes.',
    ],
    ['{"text": "a", "label": spam}', 'Line 2, column 24: "spam" is not a JSON value. Put text in double quotes.'],
    ['{"text": "a", "text": "b"}', `Line 2, column 15: The key "text" is given twice in one object. ${duplicateFix}`],
    [
      '{"text": "a", "t\\u0065xt": "b"}',
      `Line 2, column 15: The key "t\\u0065xt" is given twice in one object. ${duplicateFix}`,
    ],
    [
      '{"text": "a"',
      "Line 2, column 13: The JSON ends too early: the object that opens at column 1 is not closed. Add the missing }; each row must be whole on one line.",
    ],
    [
      '{"text": "a}',
      'Line 2, column 10: The text that begins here has no closing quote. Add the missing ", or write a quote inside the text as \\".',
    ],
    [
      '{"text": "a"},',
      'Line 2, column 14: There is more text after the end of the row, beginning with ",". Remove the comma at the end of the line: JSONL has none between rows.',
    ],
    [
      '{"text": "a"}{"text": "b"}',
      'Line 2, column 14: There is more text after the end of the row, beginning with "{". Write one object a line, and nothing else.',
    ],
    ['{"text": "a\tb"}', "Line 2, column 12: There is a raw tab inside a text. Write it as \\t."],
    [
      '{"text": "a\u0000b"}',
      "Line 2, column 12: The text holds a NUL character. Remove it: no tokenizer or database keeps it.",
    ],
    [
      '{"text": "a\\u0000b"}',
      "Line 2, column 12: The text holds a NUL character (\\u0000). Remove it: no tokenizer or database keeps it.",
    ],
    [
      '{"text": "\\q"}',
      'Line 2, column 11: There is an unknown escape "\\q" in a text. Write a backslash itself as \\\\.',
    ],
    [
      '{"text": "\\ud83d"}',
      "Line 2, column 11: The text holds half of a surrogate pair, which is no character. Write the character itself, or both halves, or remove it.",
    ],
  ])("fault %#", async (line, told) => {
    const read = await readAll(`${good}\n${line}\n${good}\n`);
    expect(read.told).toEqual([told]);
    expect(read).toMatchObject({ numRows: 3, numUsable: 2, numFaults: 1 });
  });

  it("names line and byte of what is not UTF-8", async () => {
    const read = await readAll(
      Buffer.concat([Buffer.from(`${good}\n{"text": "ä`), Buffer.from([0xe9]), Buffer.from('"}\n')]),
    );
    expect(read.told).toEqual([
      "Line 2, column 12: Byte 13 of this line (0xe9) is not valid UTF-8. Save the file as UTF-8; it may be Windows-1252 or Latin-1 now.",
    ]);
    const csv = await readAll(Buffer.from("text,label\ncaf\xe9,x\nok,y\n", "latin1"), { name: "x.csv" });
    expect(csv.told).toEqual([
      "Line 2, column 4: Byte 4 of this line (0xe9) is not valid UTF-8. Save the file as UTF-8; it may be Windows-1252 or Latin-1 now.",
    ]);
    expect(csv).toMatchObject({ numRows: 2, numUsable: 1 });
  });

  it("names half a pair in UTF-16", async () => {
    const read = await readAll(Buffer.from('\ufeff{"text": "\ud83d"}\n', "utf16le"));
    expect(read.told).toEqual([
      "Line 1, column 11: There is half of a UTF-16 surrogate pair here, which is no character. Save the file as UTF-8 from a program that can open it.",
    ]);
  });

  it("places a fault inside a pretty-printed array", async () => {
    const read = await readAll(`[\n  ${good},\n  {\n    "text": "a"\n    "label": "b"\n  }\n]`);
    expect(read.told).toEqual([
      `Line 5, column 5: Expected "," or "}", found a quote. Correct the JSON here: a missing comma, colon or quote, or a quote inside a text that is not written as \\".`,
    ]);
  });

  it.each([
    [
      `[${good}`,
      "Line 1: The JSON array is not closed: the file ends before its ]. Was the file cut off? Add the missing ], or write one object a line without brackets.",
    ],
    [`[${good},]`, "Line 1: There is a comma before the ] that closes the array. Remove the comma."],
    [`[${good},,${good}]`, "Line 1: There is a comma with no row before it. Remove the comma."],
    [
      `[${good}]\n${good}`,
      "Line 2: There is more text after the ] that closes the array. Put every row inside one array, or write one object a line without brackets.",
    ],
  ])("broken array %#", async (content, told) => {
    expect((await readAll(content)).told).toContain(told);
  });
});

describe("too much", () => {
  it("refuses JSON 200,000 levels deep at once", async () => {
    const started = performance.now();
    const read = await readAll(`${'{"messages":'.repeat(200_000)}\n${good}\n`);
    expect(read.told).toEqual([
      "Line 1, column 1537: The JSON is nested more than 128 levels deep. Flatten the row; a chat row needs about four levels.",
    ]);
    expect(read.numUsable).toBe(1);
    expect(performance.now() - started).toBeLessThan(2000);
  });

  it("refuses a 50 MB line and reads on, in lines and in an array", async () => {
    const long = `{"text":"${"x".repeat(50_000_000)}"}`;
    const told =
      "The row has 50,000,011 bytes: expected at most 8,388,608. Split it into several rows. Is a line break missing between rows?";
    const lines = await readAll(`${good}\n${long}\n${good}\n`);
    expect(lines.told).toEqual([`Line 2: ${told}`]);
    expect(lines.numUsable).toBe(2);
    const array = await readAll(`[${good},\n${long},\n${good}]`);
    expect(array.told).toEqual([`Line 2: ${told}`]);
    expect(array.numUsable).toBe(2);
  });

  it("does not slow down over a line that is all escapes", async () => {
    const started = performance.now();
    expect((await readAll(`{"text":"${"\\n".repeat(2_000_000)}x","label":"a"}`)).numUsable).toBe(1);
    expect(performance.now() - started).toBeLessThan(3000);
  });

  it("stops counting labels at 1000", async () => {
    const read = await readAll(
      Array.from({ length: 1002 }, (_, index) => `{"text":"a","label":"l${index}"}\n`).join(""),
    );
    expect(read.told).toEqual([
      "Line 1001: There are more than 1000 different labels: rows with another label are not used. Is the right column the label? Merge rare classes.",
    ]);
    expect(read.numUsable).toBe(1000);
  });
});

describe("CSV", () => {
  it.each([
    [
      "text,label\na,b,c\nd\n",
      [
        "Line 2: The row has 3 fields: expected 2 as in the header (text, label). Put a field that holds the delimiter or a line break in double quotes.",
        "Line 3: The row has 1 field: expected 2 as in the header (text, label). Put a field that holds the delimiter or a line break in double quotes.",
      ],
    ],
    [
      'text,label\na,b\nc "d",e\nf,g\n',
      [
        'Line 3: There is a quote inside a field that does not begin with one. Put the whole field in quotes and double the quotes inside it: "say ""hi""".',
      ],
    ],
    [
      'text,label\na,b\n"open,x\nc,d\n',
      [
        'Line 3: A quoted field of the row that begins here is never closed. The rows after it cannot be told apart and were not read. Add the missing quote; a quote inside a field is written twice: "".',
      ],
    ],
    [
      'text,label\n"a" b,x\nc,d\n',
      [
        'Line 2: A quoted field of the row that begins here goes on after its closing quote. The rows after it cannot be told apart and were not read. Double the quotes inside the field: "say ""hi"" to her".',
      ],
    ],
    [
      "txt,label\na,b\n",
      [
        'Line 1: The header has the columns "txt", "label": expected "text" and "label", or "prompt" and "completion". Rename the key "txt". Did you mean "text"?',
      ],
    ],
    ["text,label,text\na,b,c\n", ['Line 1: The header names the column "text" twice. Rename one of them.']],
    [
      "messages\n[]\n",
      [
        'Line 1: The header has a column "messages": chat rows cannot be read from CSV. Write one JSON object a line with "messages", or "prompt" and "completion", or "text" and "label".',
      ],
    ],
    [
      "text,label\na\u0000,b\n",
      ["Line 2, column 2: The text holds a NUL character. Remove it: no tokenizer or database keeps it."],
    ],
  ])("fault %#", async (content, told) => {
    expect((await readAll(content, { name: "x.csv" })).told).toEqual(told);
  });

  it("keeps the rows before a quote that never closes, whatever the chunks", async () => {
    const content = `text,label\n${"a,b\n".repeat(3000)}"open,x\nc,d\n`;
    for (const chunk of [100, 100_000]) {
      const read = await readAll(content, { name: "x.csv", chunk });
      expect(read).toMatchObject({ numUsable: 3000, numFaults: 1, faults: [{ line: 3002 }] });
    }
  });

  it("bounds a record that never ends", async () => {
    const read = await readAll(`text,label\n"${"line\n".repeat(1000)}`, { name: "x.csv", maxLineBytes: 1000 });
    expect(read.told).toEqual([
      "Line 2: The row that begins here has more than 1,000 bytes. The rows after it cannot be told apart and were not read. Is a closing quote missing? Otherwise split the row.",
    ]);
  });
});

describe("files that are no text", () => {
  it.each([
    [
      [0x1f, 0x8b, 8, 0],
      "The file is a gzip archive: expected JSONL or CSV text. Unpack it with gunzip, then upload the file inside.",
    ],
    [
      [0x50, 0x4b, 3, 4],
      "The file is a zip archive or an Excel or Word file: expected JSONL or CSV text. Unpack it, or save the sheet as CSV UTF-8.",
    ],
    [
      [0x50, 0x41, 0x52, 0x31],
      "The file is a Parquet file: expected JSONL or CSV text. Write it as JSONL: pandas.read_parquet(…).to_json(…, orient='records', lines=True).",
    ],
  ])("fault %#", async (bytes, message) => {
    await expect(readAll(Uint8Array.from(bytes))).rejects.toMatchObject({ code: "invalid_training_file", message });
  });
});
