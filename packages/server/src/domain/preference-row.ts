/** Checks a row of two answers to one conversation and makes it canonical. Pure. */
import type { ChatMessage, PreferenceRow } from "@fettle/contract";
import { readMessages, type RowNotes } from "./chat-row.js";
import { isRecord, own, quoted, typeName } from "./fault.js";
import type { RowShape } from "./row-shape.js";
import { checkTools } from "./tool-calls.js";

type Read = Omit<PreferenceRow, "line" | "group">;

/** Null when the row has a fault. OpenAI's `input` holds messages and tools; TRL's `prompt` is a text or messages. */
export function readPreferenceRow(value: Record<string, unknown>, { columns }: RowShape, notes: RowNotes): Read | null {
  const asked = columns["input"] === undefined ? fromPrompt(value, columns, notes) : fromInput(value, columns, notes);
  const preferred = readAnswer(value, columns["preferred"] ?? "", notes);
  const other = readAnswer(value, columns["non_preferred"] ?? "", notes);
  if (notes.faults.length > 0 || asked === null || preferred === null || other === null) return null;
  if (JSON.stringify(preferred) === JSON.stringify(other)) {
    const key = columns["non_preferred"] ?? "";
    notes.fault({
      path: key,
      rule: "same_answers",
      message: `${key} is the same as ${columns["preferred"] ?? ""}: expected another answer, since the difference is what is learnt.`,
      fix: "Write an answer that is worse, or remove the row.",
    });
    return null;
  }
  return { ...asked, preferred, non_preferred: other };
}

type Asked = Pick<Read, "messages" | "tools">;
type Columns = RowShape["columns"];

function fromInput(value: Record<string, unknown>, columns: Columns, notes: RowNotes): Asked | null {
  const key = columns["input"] ?? "";
  const input = own(value, key);
  if (!isRecord(input)) {
    notes.fault({
      path: key,
      rule: "input_not_object",
      message: `${key} is ${typeName(input)}: expected an object with messages.`,
      fix: `Write "${key}": {"messages": [{"role": "user", "content": "…"}]}.`,
    });
    return null;
  }
  for (const name of Object.keys(input))
    if (!["messages", "tools", "functions", "parallel_tool_calls"].includes(name)) notes.ignored.push(`${key}.${name}`);
  const messages = readConversation(own(input, "messages"), `${key}.messages`, notes);
  const tools = checkTools(input, notes);
  return messages === null ? null : { messages, ...(tools === null ? {} : { tools }) };
}

function fromPrompt(value: Record<string, unknown>, columns: Columns, notes: RowNotes): Asked | null {
  const key = columns["prompt"] ?? "";
  const prompt = own(value, key);
  const messages = readConversation(asMessages(prompt, "user"), key, notes);
  const tools = columns["tools"] === undefined ? null : checkTools(value, notes);
  return messages === null ? null : { messages, ...(tools === null ? {} : { tools }) };
}

/** A plain text is one turn. */
const asMessages = (value: unknown, role: ChatMessage["role"]): unknown =>
  typeof value === "string" && value.trim() !== "" ? [{ role, content: value }] : value;

/** What is answered: it must not end with an answer itself. */
function readConversation(value: unknown, path: string, notes: RowNotes): ChatMessage[] | null {
  const messages = readTurns(value, path, notes);
  const last = messages?.at(-1);
  if (last?.role !== "assistant") return messages;
  notes.fault({
    path: `${path}[${(messages?.length ?? 1) - 1}].role`,
    rule: "ends_with_answer",
    message: `The last message of ${path} is from "assistant": expected the question that both answers are given to.`,
    fix: "Move the answer to the preferred or the other answer.",
  });
  return null;
}

/** Assistant and tool turns, the last of them an assistant's. */
function readAnswer(value: Record<string, unknown>, key: string, notes: RowNotes): ChatMessage[] | null {
  const turns = readTurns(asMessages(own(value, key), "assistant"), key, notes);
  if (turns === null) return null;
  const fix = `Write "${key}": [{"role": "assistant", "content": "…"}].`;
  const stray = turns.findIndex(({ role }) => role !== "assistant" && role !== "tool");
  if (stray !== -1) {
    notes.fault({
      path: `${key}[${stray}].role`,
      rule: "answer_role",
      message: `${key}[${stray}].role is ${quoted(turns[stray]?.role)}: expected "assistant" or "tool", since this is the answer alone.`,
      fix,
    });
    return null;
  }
  const last = turns.at(-1);
  if (last?.role !== "assistant" || ((last.content ?? "").trim() === "" && last.tool_calls === undefined)) {
    notes.fault({
      path: key,
      rule: "answer_empty",
      message: `${key} ends without an answer: expected text or a tool call of the assistant.`,
      fix,
    });
    return null;
  }
  return turns;
}

function readTurns(value: unknown, path: string, notes: RowNotes): ChatMessage[] | null {
  const before = notes.faults.length;
  const turns = readMessages(value, path, notes);
  return notes.faults.length === before ? turns : null;
}
