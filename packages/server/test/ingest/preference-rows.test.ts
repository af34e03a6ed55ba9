import { describe, expect, it } from "vitest";
import { readAll } from "./read.js";

const user = { role: "user", content: "Hi?" };
const good = { role: "assistant", content: "Hello, how can I help?" };
const bad = { role: "assistant", content: "What." };
const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object" } } }];
const canonical = { line: 1, messages: [user], preferred: [good], non_preferred: [bad] };
const row = (change: Record<string, unknown>): string =>
  JSON.stringify({ input: { messages: [user] }, preferred_output: [good], non_preferred_output: [bad], ...change });

describe("preference rows", () => {
  it.each([
    ["OpenAI's spelling", row({}), {}],
    [
      "OpenAI's older spelling",
      JSON.stringify({ input: { messages: [user] }, preferred_completion: [good], non_preferred_completion: [bad] }),
      {},
    ],
    ["with tools", row({ input: { messages: [user], tools, parallel_tool_calls: false } }), { tools }],
    ["plain texts", JSON.stringify({ prompt: "Hi?", chosen: good.content, rejected: bad.content }), {}],
    ["lists of messages", JSON.stringify({ prompt: [user], chosen: [good], rejected: [bad] }), {}],
    ["with a group", row({ group: "a" }), { group: "a" }],
  ])("%s", async (_, line, more) => {
    const { rows, told, kind } = await readAll(line);
    expect(told).toEqual([]);
    expect(rows).toEqual([{ ...canonical, ...more }]);
    expect(kind).toBe("preference");
  });

  it("comes from CSV by prompt, chosen and rejected", async () => {
    const { rows } = await readAll(`prompt,chosen,rejected\nHi?,"${good.content}",What.\n`, { name: "x.csv" });
    expect(rows).toMatchObject([{ messages: [user], preferred: [good], non_preferred: [bad] }]);
  });

  it.each([
    [
      row({ input: [user] }),
      'Line 1: input is a list: expected an object with messages. Write "input": {"messages": [{"role": "user", "content": "…"}]}.',
    ],
    [
      row({ input: { messages: [{ role: "human", content: "x" }] } }),
      'Line 1: input.messages[0].role is "human": expected one of system, developer, user, assistant, tool, function. Use "user".',
    ],
    [
      row({ input: { messages: [user, good] } }),
      'Line 1: The last message of input.messages is from "assistant": expected the question that both answers are given to. Move the answer to the preferred or the other answer.',
    ],
    [
      row({ preferred_output: [user, good] }),
      'Line 1: preferred_output[0].role is "user": expected "assistant" or "tool", since this is the answer alone. Write "preferred_output": [{"role": "assistant", "content": "…"}].',
    ],
    [
      row({ non_preferred_output: [{ role: "assistant", content: " " }] }),
      'Line 1: non_preferred_output ends without an answer: expected text or a tool call of the assistant. Write "non_preferred_output": [{"role": "assistant", "content": "…"}].',
    ],
    [
      row({ non_preferred_output: [good] }),
      "Line 1: non_preferred_output is the same as preferred_output: expected another answer, since the difference is what is learnt. Write an answer that is worse, or remove the row.",
    ],
    [
      row({ preferred_output: 7 }),
      'Line 1: preferred_output is a number: expected a list of messages. Write "messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}].',
    ],
  ])("fault %#", async (line, told) => {
    expect((await readAll(line)).told).toEqual([told]);
  });
});

describe("plain texts", () => {
  it("are rows of one text, whatever says where it is from", async () => {
    const { rows, kind } = await readAll('{"text":"A document.","url":"https://x.test","id":7}\n{"text":"Another."}\n');
    expect(rows).toEqual([
      { line: 1, text: "A document." },
      { line: 2, text: "Another." },
    ]);
    expect(kind).toBe("text");
  });

  it.each([
    ['{"text":"a","lable":"b"}', "lable"],
    ['{"text":"a","label ":"b","x":1}', null],
  ])("are not texts with a misspelt label: %s", async (line, misspelt) => {
    const { rows, told } = await readAll(line);
    if (misspelt === null) expect(rows).toMatchObject([{ label: "b" }]);
    else expect(told[0]).toContain(misspelt);
  });

  it("that are empty are told", async () => {
    expect((await readAll('{"text":" "}')).told).toEqual([
      "Line 1: text is empty: expected a text. Write the text, or remove the row.",
    ]);
  });
});
