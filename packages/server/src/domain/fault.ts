/** Saying where and why a row was refused. Pure. */
import type { Fault } from "@fettle/contract";

/** `Line 7, column 12`, `Line 7`, or an empty string when the fault is about the whole file. */
export function place({ line, column }: Fault): string {
  if (line === undefined) return "";
  return column === undefined ? `Line ${line}` : `Line ${line}, column ${column}`;
}

/** `Line 7: messages[2].role is "bot": expected … Use "assistant" …`: what, where, why and fix in one text. */
export function sentence(fault: Fault): string {
  const where = place(fault);
  return `${where === "" ? "" : `${where}: `}${fault.message} ${fault.fix}`;
}

/** At most `length` characters of user text, quoted, safe to store and print: control characters and half surrogates are escaped. */
export function quoted(value: unknown, length = 40): string {
  const text = typeof value === "string" ? value : (JSON.stringify(value) ?? String(value));
  const short = text.length > length ? `${text.slice(0, length)}…` : text;
  const safe = short.replaceAll(
    /[\p{Cc}\p{Cs}]/gu,
    (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`,
  );
  return typeof value === "string" ? `"${safe}"` : safe;
}

/** `a string`, `a list`, `missing` …: what was found instead of what was expected. */
export function typeName(value: unknown): string {
  if (value === undefined) return "missing";
  if (value === null) return "null";
  if (Array.isArray(value)) return "a list";
  if (typeof value === "object") return "an object";
  return { string: "a text", number: "a number", boolean: "true or false" }[typeof value as string] ?? typeof value;
}

/** An own property: `__proto__` and `constructor` in a row are data, never the prototype's. */
export const own = (value: object, key: string): unknown =>
  Object.hasOwn(value, key) ? (value as Record<string, unknown>)[key] : undefined;

export const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);
