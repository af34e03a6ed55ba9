import { createHash } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { processFile } from "../../src/app/process-file.js";
import type { Blobs, FileRecord, Store } from "../../src/app/ports.js";
import { localBlobs } from "../../src/blobs/local.js";
import { dataReader } from "../../src/ingest/read-data.js";
import { inChunks } from "./read.js";

const record: FileRecord = {
  id: "file-1",
  projectId: "p",
  filename: "x.jsonl",
  purpose: "fine-tune",
  bytes: 1,
  sha256: "",
  status: "uploaded",
  statusDetails: null,
  createdAt: 0,
  expiresAt: null,
  report: null,
  deletedAt: null,
};

/** One file on a real disk; the store keeps just its record. `failOn`: the disk is full when this blob is written. */
async function world(content: string | null, options: { failOn?: string; file?: Partial<FileRecord> } = {}) {
  const folder = mkdtempSync(join(tmpdir(), "fettle-process-"));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  const disk = localBlobs(folder);
  if (content !== null) await disk.put("files/file-1/original", inChunks(Buffer.from(content), 4096));
  const blobs: Blobs = {
    ...disk,
    put: (key, body, limits) => disk.put(key, key === options.failOn ? fullDisk(body) : body, limits),
  };
  let file: FileRecord = { ...record, ...options.file };
  let writes = 0;
  const files = {
    get: async () => file,
    setProcessed: async (
      _project: string,
      _id: string,
      outcome: Pick<FileRecord, "statusDetails" | "report"> & { status: "processed" | "error" },
    ) => {
      writes += 1;
      file = { ...file, ...outcome };
    },
  };
  const deps = { reader: dataReader(), blobs, store: { files } as unknown as Pick<Store, "files"> };
  const text = async (key: string): Promise<string> => {
    const parts: Uint8Array[] = [];
    for await (const part of (await disk.get(key)) ?? []) parts.push(part);
    return Buffer.concat(parts).toString();
  };
  return {
    run: () => processFile(deps, { projectId: "p", fileId: "file-1" }),
    text,
    file: () => file,
    writes: () => writes,
  };
}

async function* fullDisk(body: AsyncIterable<Uint8Array>): AsyncIterable<Uint8Array> {
  for await (const part of body) {
    yield part;
    throw Object.assign(new Error("no space left on device"), { code: "ENOSPC" });
  }
}

const good = '{"text":"a","label":"x"}\n';

describe("processFile", () => {
  it("writes canonical rows and the report, once", async () => {
    const { run, text, file, writes } = await world(good.repeat(12));
    await run();
    await run();
    expect(writes()).toBe(1);
    const rows = await text("files/file-1/rows.jsonl");
    expect(rows.split("\n")[11]).toBe('{"line":12,"text":"a","label":"x"}');
    expect(file()).toMatchObject({ status: "processed", statusDetails: null });
    expect(file().report).toMatchObject({
      numRows: 12,
      numUsable: 12,
      numFaults: 0,
      kind: "classification",
      rowsSha256: createHash("sha256").update(rows).digest("hex"),
    });
  });

  it("keeps 100 faults in the report, all in the blob, and says how many", async () => {
    const { run, text, file } = await world(`${good}${'{"text":"a"\n'.repeat(250)}`);
    await run();
    expect(file().status).toBe("error");
    expect(file().report?.faults).toHaveLength(100);
    expect(file().report).toMatchObject({ numRows: 251, numUsable: 1, numFaults: 250 });
    expect((await text("files/file-1/faults.jsonl")).trim().split("\n")).toHaveLength(250);
    const sentence =
      "column 12: The JSON ends too early: the object that opens at column 1 is not closed. Add the missing }; each row must be whole on one line.";
    expect(file().statusDetails).toBe(
      `250 faults in 251 rows, 1 usable.\nLine 2, ${sentence}\nLine 3, ${sentence}\nLine 4, ${sentence}\nAll 250 faults: /api/data/file-1/faults`,
    );
  });

  it.each([
    ["\n \n", "The file holds no row: expected at least 10 to train on. Check that the right file was uploaded."],
    [
      "PK\u0003\u0004xxxx",
      "The file is a zip archive or an Excel or Word file: expected JSONL or CSV text. Unpack it, or save the sheet as CSV UTF-8.",
    ],
    [null, "The bytes of the file are gone from the disk. Upload it again."],
  ])("refuses file %#", async (content, statusDetails) => {
    const { run, file } = await world(content);
    await run();
    expect(file()).toMatchObject({ status: "error", statusDetails });
  });

  it.each(["files/file-1/rows.jsonl", "files/file-1/faults.jsonl"])(
    "fails, and leaves the file for the next try, when %s cannot be written",
    async (failOn) => {
      const { run, file, writes } = await world(`${good}{"text":1}\n`.repeat(20_000), { failOn });
      await expect(run()).rejects.toMatchObject({ code: "disk_full" });
      expect(writes()).toBe(0);
      expect(file().status).toBe("uploaded");
    },
  );

  it("leaves deleted files alone", async () => {
    const { run, writes } = await world(good, { file: { deletedAt: 1 } });
    await run();
    expect(writes()).toBe(0);
  });
});
