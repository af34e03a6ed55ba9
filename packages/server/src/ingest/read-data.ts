/** Reads a data file: finds encoding and format out, then streams its rows and faults to the sink. */
import type { DataReader, DataReport } from "../app/ports.js";
import { readCsv } from "./csv.js";
import { asUtf8, type Encoding, refuseBinary } from "./encoding.js";
import { readJsonArray, readJsonLines } from "./json-rows.js";
import type { LineSplitter } from "./lines.js";
import { RowCollector } from "./row-collector.js";
import { defaultMaxLineBytes } from "./text-checks.js";

/** `maxLineBytes` bounds one row, and with it the memory. */
export function dataReader(
  { maxLineBytes }: { maxLineBytes: number } = { maxLineBytes: defaultMaxLineBytes },
): DataReader {
  return {
    async read(source, filename, sink) {
      const { encoding, head, chunks } = await asUtf8(source);
      refuseBinary(head);
      const rows = new RowCollector(sink);
      rows.notices.push(...encodingNotices[encoding]);
      const format = formatOf(head, filename);
      const text = { chunks, head, fromUtf16: encoding.startsWith("utf-16"), maxLineBytes };
      if (format === "json-array") await readJsonArray(text, rows);
      else
        rows.notices.push(...endingNotices(await (format === "csv" ? readCsv(text, rows) : readJsonLines(text, rows))));
      return rows.report(format);
    },
  };
}

const encodingNotices: Record<Encoding, string[]> = {
  "utf-8": [],
  "utf-8-bom": ["The file begins with a UTF-8 byte order mark (BOM): accepted."],
  "utf-16le": ["The file is UTF-16 (little-endian): accepted, read as UTF-8."],
  "utf-16be": ["The file is UTF-16 (big-endian): accepted, read as UTF-8."],
};

function endingNotices({ endings }: LineSplitter): string[] {
  const notices: string[] = [];
  if (endings.crlf > 0) notices.push(`Lines end with CRLF, as Windows writes them: accepted (${endings.crlf}).`);
  if (endings.cr > 0) notices.push(`Lines end with CR, as old Macs wrote them: accepted (${endings.cr}).`);
  return notices;
}

/** By name when it says CSV, else by the first character, else by name again. */
function formatOf(head: Buffer, filename: string): DataReport["format"] {
  if (/\.(csv|tsv)$/i.test(filename)) return "csv";
  const first = head.find((byte) => byte !== 0x20 && byte !== 0x09 && byte !== 0x0a && byte !== 0x0d);
  if (first === 0x5b) return "json-array";
  if (first === 0x7b || first === undefined || /\.(jsonl|ndjson|json)$/i.test(filename)) return "jsonl";
  return "csv";
}
