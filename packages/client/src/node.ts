/** What only Node can do: files of this machine, and finding the server that runs on it. */
import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { basename } from "node:path";
import type { FileSource } from "./files.js";

/** Rejects with the system's own error (`ENOENT`, `EACCES`) when the file cannot be read. */
export async function fileFromPath(path: string): Promise<FileSource> {
  const facts = await stat(path);
  return {
    name: basename(path),
    size: facts.size,
    read: (range) =>
      createReadStream(path, { highWaterMark: 1024 * 1024, ...(range && { start: range.start, end: range.end - 1 }) }),
  };
}
