/** Blobs on the local disk, below one folder. A blob is there whole or not at all. */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { type FileHandle, mkdir, open, readdir, rename, rm, stat } from "node:fs/promises";
import { dirname, join, relative, sep } from "node:path";
import type { Blobs } from "../app/ports.js";
import { AppError } from "../domain/error.js";
import { partialOf } from "./partial.js";

/** Parts of a key: made by us, so anything else is a fault of ours or an attack. */
const keyPart = /^(?!\.{1,2}$)[A-Za-z0-9._-]{1,128}$/;

export function localBlobs(folder: string): Blobs {
  const localPath = (key: string): string => {
    const parts = key.split("/");
    if (parts.length > 8 || !parts.every((part) => keyPart.test(part))) {
      throw new AppError(
        "internal_error",
        `"${key.slice(0, 200)}" is not a blob key: expected parts of letters, digits, ".", "_" and "-", joined by "/".`,
      );
    }
    return join(folder, ...parts);
  };
  return {
    localPath,
    put: (key, body, options = {}) => putBlob(localPath(key), body, options.maxBytes ?? Number.POSITIVE_INFINITY),
    async get(key, range) {
      const path = localPath(key);
      if ((await sizeOf(path)) === null) return null;
      return createReadStream(
        path,
        range === undefined ? {} : { start: range.start, ...(range.end === undefined ? {} : { end: range.end }) },
      );
    },
    size: (key) => sizeOf(localPath(key)),
    async delete(prefix) {
      await rm(localPath(prefix), { recursive: true, force: true });
    },
    list: (folder) => listFolder(localPath(folder)),
  };
}

/** Bytes of the file at `path`; null when there is none, or a folder. */
async function sizeOf(path: string): Promise<number | null> {
  try {
    const found = await stat(path);
    return found.isFile() ? found.size : null;
  } catch (error) {
    if (["ENOENT", "ENOTDIR"].includes(codeOf(error))) return null;
    throw error;
  }
}

/** Files alone: a link is none of ours. */
async function listFolder(path: string): Promise<{ name: string; bytes: number }[]> {
  const entries = await readdir(path, { recursive: true, withFileTypes: true }).catch((error: unknown) => {
    if (codeOf(error) === "ENOENT") return [];
    throw error;
  });
  const files = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
  const listed = await Promise.all(
    files.map(async (file) => ({
      name: relative(path, file).split(sep).join("/"),
      bytes: (await stat(file)).size,
    })),
  );
  return listed.sort((a, b) => (a.name < b.name ? -1 : 1));
}

async function putBlob(
  path: string,
  body: AsyncIterable<Uint8Array>,
  maxBytes: number,
): Promise<{ bytes: number; sha256: string }> {
  const partial = partialOf(path);
  try {
    await mkdir(dirname(path), { recursive: true, mode: 0o700 });
    const written = await writeThrough(partial, body, maxBytes);
    await rename(partial, path);
    await syncFolder(dirname(path));
    return written;
  } catch (error) {
    await rm(partial, { force: true });
    if (codeOf(error) !== "ENOSPC" && codeOf(error) !== "EDQUOT") throw error;
    throw new AppError(
      "disk_full",
      `No space left on the disk of ${dirname(path)}; nothing of the upload was kept. Free space, then send it again.`,
      { cause: error },
    );
  }
}

async function writeThrough(
  path: string,
  body: AsyncIterable<Uint8Array>,
  maxBytes: number,
): Promise<{ bytes: number; sha256: string }> {
  const hash = createHash("sha256");
  const file = await open(path, "wx", 0o600);
  let bytes = 0;
  try {
    for await (const chunk of body) {
      bytes += chunk.byteLength;
      if (bytes > maxBytes)
        throw new AppError(
          "body_too_large",
          `More than ${maxBytes} bytes were sent; at most ${maxBytes} are taken here.`,
        );
      hash.update(chunk);
      await writeAll(file, chunk);
    }
    await file.sync();
  } finally {
    await file.close();
  }
  return { bytes, sha256: hash.digest("hex") };
}

/** A write may take less than it was given, on a nearly full disk for one. */
async function writeAll(file: FileHandle, chunk: Uint8Array): Promise<void> {
  for (let from = 0; from < chunk.byteLength; ) {
    from += (await file.write(chunk, from, chunk.byteLength - from)).bytesWritten;
  }
}

/** Makes the rename itself survive a power cut. */
async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, "r");
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

const codeOf = (error: unknown): string => (error instanceof Error && "code" in error ? String(error.code) : "");
