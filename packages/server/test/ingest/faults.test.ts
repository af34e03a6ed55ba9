import { describe, expect, it } from "vitest";
import { readAll } from "./read.js";

const user = { role: "user", content: "hi" };
const assistant = { role: "assistant", content: "hello" };
const good = JSON.stringify({ messages: [user, assistant] });
const row = (value: unknown): string => `${good}\n${JSON.stringify(value)}\n`;
const messages = (...turns: unknown[]): string => row({ messages: turns });
const call = { id: "call_1", type: "function", function: { name: "weather", arguments: '{"city":"Bern"}' } };

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

describe("chat rows", () => {
  const onlyAsked =
    'No message is from the assistant: there is nothing to learn. Add a message with "role": "assistant" and the answer as content.';
  it.each([
    [
      row([]),
      [
        'Line 2: The row is a list: expected an object with "messages", or "prompt" and "completion", or "text" and "label". Write each row as an object: {"messages": [...]}.',
      ],
    ],
    [
      row({ messages: "hi" }),
      [
        'Line 2: messages is a text: expected a list of messages. Write "messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}].',
      ],
    ],
    [
      messages(),
      ["Line 2: messages is an empty list: expected at least one message. Add the turns, or remove the row."],
    ],
    [
      messages(user, { role: "bot", content: "x" }, assistant),
      [
        'Line 2: messages[1].role is "bot": expected one of system, developer, user, assistant, tool, function. Use "assistant".',
      ],
    ],
    [
      messages(user, { role: "asistant", content: "x" }, assistant),
      [
        'Line 2: messages[1].role is "asistant": expected one of system, developer, user, assistant, tool, function. Did you mean "assistant"?',
      ],
    ],
    [
      messages({ content: "x" }, assistant),
      [
        'Line 2: messages[0].role is missing: expected one of system, developer, user, assistant, tool, function. Add "role": "user" or "role": "assistant".',
      ],
    ],
    [
      messages(user, assistant, user),
      [
        'Line 2: The last message is from "user": expected "assistant", whose answer is what is learnt. Add the assistant\'s answer, or remove what comes after it.',
      ],
    ],
    [messages(user), [`Line 2: ${onlyAsked}`]],
    [
      messages(user, { role: "assistant", content: " " }),
      [
        "Line 2: messages[1].content is empty: expected what the assistant should answer. Write the answer, or remove the row.",
      ],
    ],
    [
      messages(user, { role: "assistant" }),
      [
        "Line 2: messages[1].content is missing: expected a text. Add the text, or remove the message. Only an assistant turn with tool_calls may do without.",
      ],
    ],
    [
      messages({ role: "user", content: null }, assistant),
      [
        "Line 2: messages[0].content is null: expected a text. Add the text, or remove the message. Only an assistant turn with tool_calls may do without.",
      ],
    ],
    [
      messages({ role: "user", content: 5 }, assistant),
      ["Line 2: messages[0].content is a number: expected a text. Put it in quotes; write an object as JSON text."],
    ],
    [
      messages({ role: "user", content: [{ type: "image_url", image_url: {} }] }, assistant),
      [
        'Line 2: messages[0].content[0] is of type "image_url": expected a part of type "text". Only text can be trained on: remove the part, or the row.',
      ],
    ],
    [
      messages(user, { ...assistant, weight: 0.5 }),
      ["Line 2: messages[1].weight is 0.5: expected 0 or 1. Use 1 to learn this turn, 0 to leave it out."],
    ],
    [
      messages({ ...user, weight: 1 }, assistant),
      ['Line 2: messages[0].weight is 1 on a turn of role "user": only assistant turns are learnt. Remove the weight.'],
    ],
    [
      messages(user, { ...assistant, weight: 0 }),
      [
        "Line 2: Every assistant message has weight 0: there is nothing to learn. Give at least one assistant message weight 1, or remove the row.",
      ],
    ],
    [
      messages(user, "x", assistant),
      [
        'Line 2: messages[1] is a text: expected an object with role and content. Write {"role": "user", "content": "…"}.',
      ],
    ],
    [
      messages(user, { role: "assistant", content: null, tool_calls: [] }),
      [
        "Line 2: messages[1].tool_calls is an empty list: expected a list of at least one call. Leave tool_calls out when no tool is called.",
        "Line 2: messages[1].content is null: expected a text. Add the text, or remove the message. Only an assistant turn with tool_calls may do without.",
      ],
    ],
    [
      messages(user, {
        role: "assistant",
        tool_calls: [{ ...call, function: { name: "weather", arguments: { city: "Bern" } } }],
      }),
      [
        'Line 2: messages[1].tool_calls[0].function.arguments is an object: expected a JSON object as text. Write the arguments as text, such as "{\\"city\\": \\"Bern\\"}".',
      ],
    ],
    [
      messages(
        user,
        { role: "assistant", tool_calls: [call] },
        { role: "tool", content: "sun", tool_call_id: "call_9" },
        assistant,
      ),
      [
        'Line 2: messages[2].tool_call_id is "call_9": expected the id of a tool call made earlier in this row. Copy the id from the assistant\'s tool_calls.',
      ],
    ],
    [
      row({ messages: [user, assistant], tools: [] }),
      ["Line 2: tools is a list of 0: expected a list of 1 to 128 tools. Leave tools out when there is no tool."],
    ],
    [
      row({ messages: [user, assistant], tools: [{ type: "function" }] }),
      [
        'Line 2: tools[0] is {"type":"function"}: expected a function with a name. Write {"type": "function", "function": {"name": "…", "parameters": {…}}}.',
      ],
    ],
    [
      row({ text: "a", label: "b" }),
      [
        "Line 2: This is a classification row, but the rows before it are chat rows: expected one kind in a file. Move the rows of each kind to a file of their own.",
      ],
    ],
    [
      row({ mesages: [] }),
      [
        'Line 2: The row has the keys "mesages": expected "messages" as in the rows before it. Rename "mesages" to "messages".',
      ],
    ],
  ])("fault %#", async (content, told) => {
    const read = await readAll(content);
    expect(read.told).toEqual(told);
    expect(read.faults.every((fault) => fault.rule !== "" && fault.fix !== "")).toBe(true);
  });

  it("finds every fault of a row", async () => {
    const read = await readAll(messages({ role: "x", content: 1 }, { role: "assistant", content: "", weight: 2 }));
    expect(read.faults.map((fault) => fault.path)).toEqual([
      "messages[0].role",
      "messages[0].content",
      "messages[1].weight",
      "messages[1].content",
    ]);
  });

  it("takes tool calls, parts, weights and the older spelling of functions", async () => {
    const read = await readAll(
      `${JSON.stringify({ messages: [user, { role: "assistant", tool_calls: [call] }, { role: "tool", content: "sun", tool_call_id: "call_1" }, { ...assistant, weight: 1 }], tools: [{ type: "function", function: { name: "weather", parameters: {} } }] })}\n` +
        `${JSON.stringify({
          messages: [
            {
              role: "user",
              content: [
                { type: "text", text: "a" },
                { type: "text", text: "b" },
              ],
            },
            { role: "assistant", content: null, function_call: call.function },
          ],
          functions: [{ name: "weather" }],
        })}\n`,
    );
    expect(read.told).toEqual([]);
    expect(read.rows[1]).toEqual({
      line: 2,
      messages: [
        { role: "user", content: "ab" },
        {
          role: "assistant",
          content: null,
          tool_calls: [{ id: "call_weather", type: "function", function: call.function }],
        },
      ],
      tools: [{ type: "function", function: { name: "weather" } }],
    });
  });
});

describe("other rows", () => {
  const shapes = '"messages", or "prompt" and "completion", or "text" and "label"';
  it.each([
    [
      '{"text":"a","label":""}',
      "Line 1: label is empty: expected the name of a class. Name the class, or remove the row.",
    ],
    [
      '{"text":"a","label":0.5}',
      "Line 1: label is the number 0.5: expected the name of one class. Give one class name as text, or remove the row.",
    ],
    [
      '{"text":"a","label":["x"]}',
      "Line 1: label is a list: expected the name of one class. Give one class name as text, or remove the row.",
    ],
    ['{"text":" ","label":"x"}', "Line 1: text is empty: expected a text. Write the text, or remove the row."],
    [
      '{"prompt":"a","completion":null}',
      "Line 1: completion is null: expected a text. Put it in quotes, or remove the row.",
    ],
    [
      '{"txt":"a","label":"b"}',
      `Line 1: The row has the keys "txt", "label": expected ${shapes}. Rename the key "txt". Did you mean "text"?`,
    ],
    [
      '{"conversations":[]}',
      `Line 1: The row has the keys "conversations": expected ${shapes}. Rename "conversations" to "messages", "from" to "role" (human is "user", gpt is "assistant") and "value" to "content".`,
    ],
    [
      '{"prompt":"a","chosen":"b","rejected":"c"}',
      `Line 1: The row has the keys "prompt", "chosen", "rejected": expected ${shapes}. "chosen" belongs to preference tuning (dpo), which is not built: give "messages" whose last turn is the preferred answer.`,
    ],
    ["{}", `Line 1: The row has no keys: expected ${shapes}. Rename the keys, or add the missing one.`],
  ])("fault %#", async (line, told) => {
    expect((await readAll(line)).told).toEqual([told]);
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
