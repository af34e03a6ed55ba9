/** JSON rows, one a line or in one array: each is checked strictly, then parsed. */
import type { Fault } from "@fettle/contract";
import { ArraySplitter } from "./json-array.js";
import { columnOf, scanJson } from "./json-scan.js";
import { LineSplitter } from "./lines.js";
import type { RowCollector } from "./row-collector.js";
import { tooLongFault, utf8Fault } from "./text-checks.js";

export interface JsonSource {
  chunks: AsyncIterable<Buffer>;
  fromUtf16: boolean;
  maxLineBytes: number;
}

/** Reads one object a line. Blank lines are passed over and told. */
export async function readJsonLines(source: JsonSource, rows: RowCollector): Promise<LineSplitter> {
  const splitter = new LineSplitter(source.maxLineBytes);
  let blank = 0;
  /** Blank lines seen since the last row: those at the very end are nothing to tell. */
  let blankSinceRow = 0;
  const take = async (lines: ReturnType<LineSplitter["push"]>): Promise<void> => {
    for (const { number, bytes, length, tooLong } of lines) {
      if (!tooLong && isBlank(bytes)) blankSinceRow += 1;
      else {
        blank += blankSinceRow;
        blankSinceRow = 0;
        await readValue({ bytes, length, tooLong, line: number, column: 1 }, source, rows);
      }
    }
  };
  for await (const chunk of source.chunks) await take(splitter.push(chunk));
  await take(splitter.end());
  if (blank > 0) rows.notices.push(`Blank lines between rows: accepted (${blank}).`);
  return splitter;
}

/** Reads a JSON array of objects as if each were a line. */
export async function readJsonArray(source: JsonSource, rows: RowCollector): Promise<void> {
  const splitter = new ArraySplitter(source.maxLineBytes);
  rows.notices.push("The file is one JSON array instead of one object a line: accepted.");
  const take = async (elements: ReturnType<ArraySplitter["push"]>): Promise<void> => {
    for (const element of elements) await readValue(element, source, rows);
    for (const fault of splitter.faults.splice(0)) await rows.fault(fault);
  };
  for await (const chunk of source.chunks) await take(splitter.push(chunk));
  await take(splitter.end());
}

interface Located {
  bytes: Buffer;
  length: number;
  tooLong: boolean;
  line: number;
  column: number;
}

async function readValue(
  { bytes, length, tooLong, line, column }: Located,
  source: JsonSource,
  rows: RowCollector,
): Promise<void> {
  const fault = tooLong
    ? tooLongFault(line, length, source.maxLineBytes)
    : (utf8Fault(bytes, line, source.fromUtf16) ?? syntaxFault(bytes, line, column));
  if (fault !== null) {
    await rows.unreadable(fault);
    return;
  }
  await rows.value(JSON.parse(bytes.toString("utf8")), line);
}

function syntaxFault(bytes: Buffer, line: number, startColumn: number): Fault | null {
  const problem = scanJson(bytes);
  if (problem === null) return null;
  const before = bytes.subarray(0, problem.offset);
  const lineBreaks = countByte(before, 0x0a);
  const column = columnOf(bytes, problem.offset) + (lineBreaks === 0 ? startColumn - 1 : 0);
  return { line: line + lineBreaks, column, rule: problem.rule, message: problem.message, fix: problem.fix };
}

function countByte(bytes: Buffer, byte: number): number {
  let count = 0;
  for (let at = bytes.indexOf(byte); at !== -1; at = bytes.indexOf(byte, at + 1)) count += 1;
  return count;
}

function isBlank(bytes: Buffer): boolean {
  for (const byte of bytes) if (byte !== 0x20 && byte !== 0x09) return false;
  return true;
}
