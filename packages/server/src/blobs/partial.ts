/** Names of blobs that are being written, and what to do with those whose writer was killed. */
import { randomBytes } from "node:crypto";
import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";

const partialName = /\.partial-[0-9a-f]{12}$/;

export const partialOf = (path: string): string => `${path}.partial-${randomBytes(6).toString("hex")}`;

/**
 * Removes what nobody writes any more: a killed upload of 8 GB would fill the disk for good. Call before anything is
 * written. Runs are left out: their folders are the trainers', which outlive the server.
 */
export async function removePartials(folder: string): Promise<void> {
  for (const top of ["files", "uploads"]) {
    const names = await readdir(join(folder, top), { recursive: true }).catch(noFolder);
    for (const name of names) if (partialName.test(name)) await rm(join(folder, top, name), { force: true });
  }
}

function noFolder(error: NodeJS.ErrnoException): string[] {
  if (error.code === "ENOENT") return [];
  throw error;
}
