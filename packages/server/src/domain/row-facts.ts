/** What a canonical row tells a split and an estimate. Pure. */
import type { CanonicalRow, ChatMessage } from "@fettle/contract";
import { textHash } from "./split.js";

/** Bytes of UTF-8 per token of common tokenizers on prose: 4.2 to 4.6 for English, less for other languages and code. */
const bytesPerToken = 3.6;
/** Role markers and line breaks that a chat template puts around a message. */
const tokensPerMessage = 5;

/** Rows with the same key must not be on both sides of a split: the same group, or the same question. */
export function splitKey(row: CanonicalRow): number {
  if (row.group !== undefined) return textHash(`g:${row.group}`);
  return textHash(`q:${question(row).toLowerCase().replaceAll(/\s+/g, " ").trim()}`);
}

function question(row: CanonicalRow): string {
  if ("text" in row) return `${row.text}\u0000${"text_pair" in row ? (row.text_pair ?? "") : ""}`;
  if ("chosen_text" in row) return row.prompt ?? `${row.chosen_text}\u0000${row.rejected_text}`;
  if ("question" in row) return `${row.question}\u0000${row.context}`;
  if ("anchor" in row) return row.anchor;
  if ("prompt" in row) return row.prompt;
  const asked = row.messages.filter((message) => message.role === "user").map((message) => message.content ?? "");
  return asked.join("\u0000");
}

/** About how many tokens the row has, before any tokenizer has seen it. */
export function approximateTokens(row: CanonicalRow): number {
  if ("text" in row) return tokensOf(row.text) + ("text_pair" in row ? tokensOf(row.text_pair ?? "") : 0) + 3;
  if ("chosen_text" in row)
    return 2 * tokensOf(row.prompt ?? "") + tokensOf(row.chosen_text) + tokensOf(row.rejected_text) + 6;
  if ("question" in row) return tokensOf(row.question) + tokensOf(row.context) + 3;
  if ("anchor" in row) return tokensOf(row.anchor) + tokensOf(row.positive) + tokensOf(row.negative ?? "") + 9;
  if ("prompt" in row) return tokensOf(row.prompt) + tokensOf(row.completion) + 3;
  const tools = row.tools === undefined ? 0 : tokensOf(JSON.stringify(row.tools));
  const asked = tools + 3 + messagesTokens(row.messages);
  if (!("preferred" in row)) return asked;
  // The conversation is read with each of both answers.
  return 2 * asked + messagesTokens(row.preferred) + messagesTokens(row.non_preferred);
}

const messagesTokens = (messages: readonly ChatMessage[]): number =>
  messages.reduce((sum, message) => sum + messageTokens(message), 0);

const messageTokens = (message: ChatMessage): number =>
  tokensOf(message.content ?? "") +
  tokensPerMessage +
  (message.tool_calls === undefined ? 0 : tokensOf(JSON.stringify(message.tool_calls)));

/** UTF-8 bytes without encoding: characters outside ASCII are counted as two and a half. */
function tokensOf(text: string): number {
  let bytes = 0;
  for (let at = 0; at < text.length; at += 1) bytes += text.charCodeAt(at) < 128 ? 1 : 2.5;
  return Math.ceil(bytes / bytesPerToken);
}
