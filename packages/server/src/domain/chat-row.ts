/** Checks a chat row and makes it canonical. Pure. Every fault of the row is found, not only the first. */
import { type ChatMessage, type ChatRow, type Fault, roleSchema } from "@fettle/contract";
import { isRecord, own, quoted, typeName } from "./fault.js";
import { suggestion } from "./nearest.js";
import { checkTools, type NotedFault, readToolCalls } from "./tool-calls.js";

const roles: readonly string[] = roleSchema.options;
const messageKeys = ["role", "content", "name", "weight", "tool_calls", "tool_call_id", "function_call"];

/** Collects faults and what was passed over while one row is read. */
export class RowNotes {
  readonly faults: Fault[] = [];
  readonly ignored: string[] = [];
  constructor(readonly line: number) {}

  fault(found: NotedFault): void {
    this.faults.push({ line: this.line, ...found });
  }
}

/** Null when the row has a fault. */
export function readChatRow(value: Record<string, unknown>, notes: RowNotes): Omit<ChatRow, "line" | "group"> | null {
  const messages = own(value, "messages");
  const read = readMessages(messages, "messages", notes);
  if (!Array.isArray(messages) || read === null) return null;
  checkAnswers(messages, notes);
  checkToolAnswers(messages, notes);
  const tools = checkTools(value, notes);
  if (notes.faults.length > 0) return null;
  return { messages: read, ...(tools === null ? {} : { tools }) };
}

/** Each message by itself; null when it is no list, or an empty one. Messages with a fault are left out. */
export function readMessages(messages: unknown, path: string, notes: RowNotes): ChatMessage[] | null {
  if (!Array.isArray(messages)) {
    notes.fault({
      path,
      rule: "messages_not_list",
      message: `${path} is ${typeName(messages)}: expected a list of messages.`,
      fix: 'Write "messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}].',
    });
    return null;
  }
  if (messages.length === 0) {
    notes.fault({
      path,
      rule: "messages_empty",
      message: `${path} is an empty list: expected at least one message.`,
      fix: "Add the turns, or remove the row.",
    });
    return null;
  }
  return messages
    .map((message: unknown, index) => readMessage(message, `${path}[${index}]`, notes))
    .filter((message) => message !== null);
}

function readMessage(message: unknown, path: string, notes: RowNotes): ChatMessage | null {
  if (!isRecord(message)) {
    notes.fault({
      path,
      rule: "message_not_object",
      message: `${path} is ${typeName(message)}: expected an object with role and content.`,
      fix: 'Write {"role": "user", "content": "…"}.',
    });
    return null;
  }
  const role = own(message, "role");
  const known = readRole(role, `${path}.role`, notes);
  const toolCalls = readToolCalls(message, { path, role, notes });
  const content = readContent(message, { path: `${path}.content`, role, hasCalls: toolCalls !== null, notes });
  const weight = readWeight(message, `${path}.weight`, notes);
  const name = optionalText(message, { key: "name", path, notes });
  const toolCallId = optionalText(message, { key: "tool_call_id", path, notes });
  for (const key of Object.keys(message)) if (!messageKeys.includes(key)) notes.ignored.push(`messages[].${key}`);
  if (!known) return null;
  return {
    role: role as ChatMessage["role"],
    content,
    ...(name === undefined ? {} : { name }),
    ...(weight === undefined || role !== "assistant" ? {} : { weight }),
    ...(toolCalls === null ? {} : { tool_calls: toolCalls }),
    ...(toolCallId === undefined ? {} : { tool_call_id: toolCallId }),
  };
}

function readRole(role: unknown, path: string, notes: RowNotes): boolean {
  if (role === undefined) {
    notes.fault({
      path,
      rule: "role_missing",
      message: `${path} is missing: expected one of ${roles.join(", ")}.`,
      fix: 'Add "role": "user" or "role": "assistant".',
    });
    return false;
  }
  if (typeof role === "string" && roles.includes(role)) return true;
  const usual: Record<string, string> = {
    human: "user",
    gpt: "assistant",
    bot: "assistant",
    model: "assistant",
    ai: "assistant",
    customer: "user",
  };
  const meant =
    typeof role === "string" && Object.hasOwn(usual, role.toLowerCase()) ? usual[role.toLowerCase()] : undefined;
  const near = typeof role === "string" ? suggestion(role, roles).trim() : "";
  const fix =
    meant === undefined
      ? near.startsWith("Did")
        ? near
        : 'Use "user" for what is asked and "assistant" for what the model should say.'
      : `Use "${meant}".`;
  notes.fault({
    path,
    rule: "role_unknown",
    message: `${path} is ${quoted(role)}: expected one of ${roles.join(", ")}.`,
    fix,
  });
  return false;
}

interface ContentPlace {
  path: string;
  role: unknown;
  hasCalls: boolean;
  notes: RowNotes;
}

function readContent(message: Record<string, unknown>, { path, role, hasCalls, notes }: ContentPlace): string | null {
  const content = own(message, "content");
  if (typeof content === "string") return content;
  if (content === null || content === undefined) {
    if (role === "assistant" && hasCalls) return null;
    const what = content === null ? "null" : "missing";
    notes.fault({
      path,
      rule: "content_missing",
      message: `${path} is ${what}: expected a text.`,
      fix: "Add the text, or remove the message. Only an assistant turn with tool_calls may do without.",
    });
    return null;
  }
  if (Array.isArray(content)) return joinParts(content, path, notes);
  notes.fault({
    path,
    rule: "content_not_text",
    message: `${path} is ${typeName(content)}: expected a text.`,
    fix: "Put it in quotes; write an object as JSON text.",
  });
  return null;
}

/** OpenAI's list of parts; text parts are joined. Images and audio are refused, never dropped. */
function joinParts(parts: unknown[], path: string, notes: RowNotes): string | null {
  const texts: string[] = [];
  for (const [index, part] of parts.entries()) {
    const type = isRecord(part) ? own(part, "type") : undefined;
    const text = isRecord(part) ? own(part, "text") : undefined;
    if (type === "text" && typeof text === "string") texts.push(text);
    else
      notes.fault({
        path: `${path}[${index}]`,
        rule: "content_part_unsupported",
        message: `${path}[${index}] is ${type === undefined ? typeName(part) : `of type ${quoted(type)}`}: expected a part of type "text".`,
        fix: "Only text can be trained on: remove the part, or the row.",
      });
  }
  return texts.join("");
}

function readWeight(message: Record<string, unknown>, path: string, notes: RowNotes): 0 | 1 | undefined {
  const weight = own(message, "weight");
  if (weight === undefined) return undefined;
  if (weight !== 0 && weight !== 1) {
    notes.fault({
      path,
      rule: "weight_invalid",
      message: `${path} is ${quoted(weight)}: expected 0 or 1.`,
      fix: "Use 1 to learn this turn, 0 to leave it out.",
    });
    return undefined;
  }
  if (weight === 1 && own(message, "role") !== "assistant") {
    notes.fault({
      path,
      rule: "weight_not_assistant",
      message: `${path} is 1 on a turn of role ${quoted(own(message, "role"))}: only assistant turns are learnt.`,
      fix: "Remove the weight.",
    });
  }
  return weight;
}

function optionalText(
  message: Record<string, unknown>,
  at: { key: string; path: string; notes: RowNotes },
): string | undefined {
  const value = own(message, at.key);
  if (value === undefined || value === null) return undefined;
  if (typeof value === "string") return value;
  at.notes.fault({
    path: `${at.path}.${at.key}`,
    rule: `${at.key}_not_text`,
    message: `${at.path}.${at.key} is ${typeName(value)}: expected a text.`,
    fix: "Put it in quotes, or leave it out.",
  });
  return undefined;
}

const says = (message: Record<string, unknown>): boolean => {
  const content = own(message, "content");
  const hasText = typeof content === "string" ? content.trim() !== "" : Array.isArray(content) && content.length > 0;
  return (
    hasText ||
    isRecord(own(message, "function_call")) ||
    (Array.isArray(own(message, "tool_calls")) && (own(message, "tool_calls") as unknown[]).length > 0)
  );
};

/** The row must end with an answer, and at least one answer must be there to learn. */
function checkAnswers(messages: readonly unknown[], notes: RowNotes): void {
  const last = messages.at(-1);
  const lastRole = isRecord(last) ? own(last, "role") : undefined;
  const answers = messages.flatMap((message, index) =>
    isRecord(message) && own(message, "role") === "assistant" ? [{ message, index }] : [],
  );
  if (answers.length === 0) {
    notes.fault({
      path: "messages",
      rule: "no_assistant",
      message: "No message is from the assistant: there is nothing to learn.",
      fix: 'Add a message with "role": "assistant" and the answer as content.',
    });
    return;
  }
  if (typeof lastRole === "string" && roles.includes(lastRole) && lastRole !== "assistant") {
    const path = `messages[${messages.length - 1}].role`;
    notes.fault({
      path,
      rule: "last_not_assistant",
      message: `The last message is from "${lastRole}": expected "assistant", whose answer is what is learnt.`,
      fix: "Add the assistant's answer, or remove what comes after it.",
    });
  }
  for (const { message, index } of answers) {
    const content = own(message, "content");
    const empty =
      (typeof content === "string" && content.trim() === "") || (Array.isArray(content) && content.length === 0);
    if (!empty || says(message) || own(message, "weight") === 0) continue;
    notes.fault({
      path: `messages[${index}].content`,
      rule: "assistant_empty",
      message: `messages[${index}].content is empty: expected what the assistant should answer.`,
      fix: "Write the answer, or remove the row.",
    });
  }
  if (answers.every(({ message }) => own(message, "weight") === 0)) {
    notes.fault({
      path: "messages",
      rule: "nothing_to_learn",
      message: "Every assistant message has weight 0: there is nothing to learn.",
      fix: "Give at least one assistant message weight 1, or remove the row.",
    });
  }
}

/** A tool's message answers a call made before it. */
function checkToolAnswers(messages: readonly unknown[], notes: RowNotes): void {
  const calls = new Set<unknown>();
  for (const [index, message] of messages.entries()) {
    if (!isRecord(message)) continue;
    const made = own(message, "tool_calls");
    if (Array.isArray(made)) for (const call of made) if (isRecord(call)) calls.add(own(call, "id"));
    if (own(message, "role") !== "tool") continue;
    const id = own(message, "tool_call_id");
    if (typeof id === "string" && calls.has(id)) continue;
    const path = `messages[${index}].tool_call_id`;
    const what = id === undefined ? "is missing" : `is ${quoted(id)}`;
    notes.fault({
      path,
      rule: "tool_call_unknown",
      message: `${path} ${what}: expected the id of a tool call made earlier in this row.`,
      fix: "Copy the id from the assistant's tool_calls.",
    });
  }
}
