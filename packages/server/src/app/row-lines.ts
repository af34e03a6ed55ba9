/** Canonical rows of a file, one at a time. */
import type { CanonicalRow } from "@fettle/contract";
import { AppError } from "../domain/error.js";
import { rowsKey } from "./process-file.js";
import type { Blobs } from "./ports.js";

const lineBreak = 0x0a;

/** The lines of `files/<id>/rows.jsonl`, without their ending. Throws `file_not_usable` when the blob is gone. */
export async function* rowLines(blobs: Pick<Blobs, "get">, fileId: string): AsyncIterable<Buffer> {
  const bytes = await blobs.get(rowsKey(fileId));
  if (bytes === null)
    throw new AppError(
      "file_not_usable",
      `The checked rows of the file "${fileId}" are gone from the disk. Upload it again.`,
    );
  let held: Buffer[] = [];
  for await (const piece of bytes) {
    const chunk = Buffer.from(piece.buffer, piece.byteOffset, piece.byteLength);
    let from = 0;
    for (let end = chunk.indexOf(lineBreak); end !== -1; end = chunk.indexOf(lineBreak, from)) {
      yield held.length === 0 ? chunk.subarray(from, end) : Buffer.concat([...held, chunk.subarray(from, end)]);
      held = [];
      from = end + 1;
    }
    if (from < chunk.length) held.push(chunk.subarray(from));
  }
  if (held.length > 0) yield Buffer.concat(held);
}

/** We wrote these rows and know their hash, so they are not checked again. */
export const parseRow = (line: Buffer): CanonicalRow => JSON.parse(line.toString("utf8")) as CanonicalRow;
