import { describe, expect, it } from "vitest";
import { readAll } from "./read.js";

const user = { role: "user", content: "hi" };
const assistant = { role: "assistant", content: "hello" };
const good = JSON.stringify({ messages: [user, assistant] });
const row = (value: unknown): string => `${good}\n${JSON.stringify(value)}\n`;
const messages = (...turns: unknown[]): string => row({ messages: turns });
const call = { id: "call_1", type: "function", function: { name: "weather", arguments: '{"city":"Bern"}' } };

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
      '{"prompt":"a","chosen":"b"}',
      `Line 1: The row has the keys "prompt", "chosen": expected ${shapes}. A row of preferences has "prompt", "chosen" and "rejected": add "rejected".`,
    ],
    ["{}", `Line 1: The row has no keys: expected ${shapes}. Rename the keys, or add the missing one.`],
  ])("fault %#", async (line, told) => {
    expect((await readAll(line)).told).toEqual([told]);
  });
});
