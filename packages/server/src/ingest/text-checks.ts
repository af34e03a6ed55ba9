/** Checks on the bytes of a line, before any format is looked at. */
import { isUtf8 } from "node:buffer";
import type { Fault } from "@fettle/contract";

/** The longest line or array element that is read, in bytes of UTF-8. */
export const defaultMaxLineBytes = 8 * 1024 * 1024;

export function tooLongFault(line: number, length: number, maxBytes: number): Fault {
  return {
    line,
    rule: "line_too_long",
    message: `The row has ${length.toLocaleString("en-US")} bytes: expected at most ${maxBytes.toLocaleString("en-US")}.`,
    fix: "Split it into several rows. Is a line break missing between rows?",
  };
}

/** Null when `bytes` is valid UTF-8. */
export function utf8Fault(bytes: Buffer, line: number, fromUtf16: boolean): Fault | null {
  if (isUtf8(bytes)) return null;
  const offset = firstInvalid(bytes);
  const text = bytes.subarray(0, offset).toString("utf8");
  const byte = (bytes[offset] ?? 0).toString(16).padStart(2, "0");
  const message = fromUtf16
    ? "There is half of a UTF-16 surrogate pair here, which is no character."
    : `Byte ${offset + 1} of this line (0x${byte}) is not valid UTF-8.`;
  const fix = fromUtf16
    ? "Save the file as UTF-8 from a program that can open it."
    : "Save the file as UTF-8; it may be Windows-1252 or Latin-1 now.";
  return { line, column: [...text].length + 1, rule: "text_not_utf8", message, fix };
}

/** Offset of the first byte that does not belong to UTF-8 text: where decoding puts a U+FFFD that the bytes do not hold. */
function firstInvalid(bytes: Buffer): number {
  const text = bytes.toString("utf8");
  let offset = 0;
  let from = 0;
  for (let at = text.indexOf("\ufffd"); at !== -1; at = text.indexOf("\ufffd", from)) {
    offset += Buffer.byteLength(text.slice(from, at));
    if (bytes[offset] !== 0xef || bytes[offset + 1] !== 0xbf || bytes[offset + 2] !== 0xbd) return offset;
    offset += 3;
    from = at + 1;
  }
  return bytes.length;
}
