import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdir, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { Blobs } from "../../src/app/ports.js";
import { localBlobs } from "../../src/blobs/local.js";

let folder: string;
let blobs: Blobs;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "fettle-blobs-"));
  blobs = localBlobs(folder);
});
afterEach(() => rm(folder, { recursive: true, force: true }));

async function* chunks(...parts: string[]): AsyncIterable<Uint8Array> {
  for (const part of parts) yield Buffer.from(part);
}
async function text(key: string, range?: { start: number; end?: number }): Promise<string | null> {
  const stream = await blobs.get(key, range);
  if (stream === null) return null;
  const parts: Uint8Array[] = [];
  for await (const part of stream) parts.push(part);
  return Buffer.concat(parts).toString();
}

describe("local blobs", () => {
  it("keeps what was streamed, with its size and hash, and gives ranges", async () => {
    const kept = await blobs.put("files/file-1/original", chunks("hello ", "world"));
    expect(kept).toEqual({ bytes: 11, sha256: createHash("sha256").update("hello world").digest("hex") });
    expect(await text("files/file-1/original")).toBe("hello world");
    expect(await text("files/file-1/original", { start: 6 })).toBe("world");
    expect(await text("files/file-1/original", { start: 1, end: 3 })).toBe("ell");
    expect(await blobs.size("files/file-1/original")).toBe(11);
    expect(await readFile(blobs.localPath("files/file-1/original"), "utf8")).toBe("hello world");
  });

  it("answers null for what is not there, and for a folder", async () => {
    await blobs.put("files/file-1/original", chunks("x"));
    expect(await blobs.get("files/file-2/original")).toBeNull();
    expect(await blobs.size("files/file-1")).toBeNull();
    expect(await blobs.size("files/file-1/original/deeper")).toBeNull();
  });

  it("deletes one blob or everything below a prefix, and forgives what is gone", async () => {
    await blobs.put("files/a/original", chunks("x"));
    await blobs.put("files/a/rows.jsonl", chunks("y"));
    await blobs.put("files/ab/original", chunks("z"));
    await blobs.delete("files/a");
    await blobs.delete("files/a");
    expect(await blobs.size("files/a/original")).toBeNull();
    expect(await blobs.size("files/ab/original")).toBe(1);
  });

  it("keeps the old blob and no debris when the new one is too large or its stream breaks", async () => {
    await blobs.put("files/a/original", chunks("old"));
    await expect(blobs.put("files/a/original", chunks("123", "456"), { maxBytes: 5 })).rejects.toMatchObject({
      code: "body_too_large",
    });
    const broken = async function* (): AsyncIterable<Uint8Array> {
      yield Buffer.from("half");
      throw new Error("client went away");
    };
    await expect(blobs.put("files/a/original", broken())).rejects.toThrow("client went away");
    expect(await text("files/a/original")).toBe("old");
    expect(await readdir(join(folder, "files/a"))).toEqual(["original"]);
  });

  it("never leaves its folder, whatever the key", async () => {
    for (const key of ["", "/", "..", "../x", "a/../b", "a//b", "/etc/passwd", "a/./b", "a\0b", "a\\b", "a/b\n", "ä"]) {
      expect(() => blobs.localPath(key), JSON.stringify(key)).toThrow(/is not a blob key/);
      await expect(async () => blobs.put(key, chunks("x")), JSON.stringify(key)).rejects.toThrow(/is not a blob key/);
    }
    fc.assert(
      fc.property(
        fc.oneof(
          fc.string(),
          fc.array(fc.constantFrom("..", ".", "a", "/", "\\", "%2e", "\0")).map((parts) => parts.join("/")),
        ),
        (key) => {
          try {
            expect(blobs.localPath(key).startsWith(`${folder}/`)).toBe(true);
          } catch (error) {
            expect(String(error)).toContain("is not a blob key");
          }
        },
      ),
    );
  });

  const canMount = process.platform === "linux" && process.getuid?.() === 0;
  // A disk of one megabyte can only be made by root, on Linux.
  it.skipIf(!canMount)("says disk_full on a full disk, and removes what was written", async () => {
    const small = join(folder, "small");
    await mkdir(small);
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", small]);
    try {
      const onSmall = localBlobs(small);
      const endless = async function* (): AsyncIterable<Uint8Array> {
        for (;;) yield Buffer.alloc(65_536);
      };
      await expect(onSmall.put("files/big", endless())).rejects.toMatchObject({
        code: "disk_full",
        message: expect.stringContaining("nothing of the upload was kept"),
      });
      expect(await readdir(join(small, "files"))).toEqual([]);
      await onSmall.put("files/fits", chunks("x"));
      expect(await onSmall.size("files/fits")).toBe(1);
    } finally {
      execFileSync("umount", [small]);
    }
  });
});
