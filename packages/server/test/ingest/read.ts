/** Reading bytes in tests: everything the reader told, in memory. */
import type { CanonicalRow, Fault } from "@fettle/contract";
import { sentence } from "../../src/domain/fault.js";
import { dataReader } from "../../src/ingest/read-data.js";

export async function* inChunks(bytes: Uint8Array, size = 65536): AsyncIterable<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

export async function readAll(
  content: string | Uint8Array,
  options: { name?: string; chunk?: number; maxLineBytes?: number } = {},
) {
  const bytes = typeof content === "string" ? Buffer.from(content) : content;
  const rows: CanonicalRow[] = [];
  const faults: Fault[] = [];
  const report = await dataReader({ maxLineBytes: options.maxLineBytes ?? 8 * 1024 * 1024 }).read(
    inChunks(bytes, options.chunk),
    options.name ?? "data.jsonl",
    {
      row: (row) => void rows.push(row),
      fault: (fault) => void faults.push(fault),
    },
  );
  return { ...report, rows, faults, told: faults.map(sentence) };
}
