import { createHash } from "node:crypto";
import { describe, expect, it } from "vitest";
import { processFile } from "../../src/app/process-file.js";
import type { Blobs, DataReport, FileRecord } from "../../src/app/ports.js";
import { dataReader } from "../../src/ingest/read-data.js";

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

/** One file in memory: enough of the store and the blobs to see what processing wrote. */
function world(content: string | null, options: { failOn?: string; file?: Partial<FileRecord> } = {}) {
  const blobs = new Map<string, Buffer>();
  if (content !== null) blobs.set("files/file-1/original", Buffer.from(content));
  let file: FileRecord = { ...record, ...options.file };
  let writes = 0;
  const memory: Pick<Blobs, "get" | "put"> = {
    async put(key, body) {
      const parts: Uint8Array[] = [];
      for await (const part of body) {
        parts.push(part);
        if (key === options.failOn) throw Object.assign(new Error("no space left on device"), { code: "ENOSPC" });
      }
      const bytes = Buffer.concat(parts);
      blobs.set(key, bytes);
      return { bytes: bytes.length, sha256: createHash("sha256").update(bytes).digest("hex") };
    },
    async get(key) {
      const bytes = blobs.get(key);
      return bytes === undefined
        ? null
        : (async function* () {
            for (let at = 0; at < bytes.length; at += 4096) yield bytes.subarray(at, at + 4096);
          })();
    },
  };
  const deps = {
    reader: dataReader(),
    blobs: memory as Blobs,
    store: {
      files: {
        get: async () => file,
        setProcessed: async (
          _project: string,
          _id: string,
          outcome: { status: "processed" | "error"; statusDetails: string | null; report: DataReport | null },
        ) => {
          writes += 1;
          file = { ...file, ...outcome };
        },
      },
    } as unknown as Parameters<typeof processFile>[0]["store"],
  };
  return {
    run: () => processFile(deps, { projectId: "p", fileId: "file-1" }),
    blobs,
    file: () => file,
    writes: () => writes,
  };
}

const good = '{"text":"a","label":"x"}\n';

describe("processFile", () => {
  it("writes canonical rows and the report, once", async () => {
    const { run, blobs, file, writes } = world(good.repeat(12));
    await run();
    await run();
    expect(writes()).toBe(1);
    const rows = blobs.get("files/file-1/rows.jsonl") ?? Buffer.alloc(0);
    expect(rows.toString().split("\n")[11]).toBe('{"line":12,"text":"a","label":"x"}');
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
    const { run, blobs, file } = world(`${good}${'{"text":"a"\n'.repeat(250)}`);
    await run();
    expect(file().status).toBe("error");
    expect(file().report?.faults).toHaveLength(100);
    expect(file().report).toMatchObject({ numRows: 251, numUsable: 1, numFaults: 250 });
    expect(blobs.get("files/file-1/faults.jsonl")?.toString().trim().split("\n")).toHaveLength(250);
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
    const { run, file } = world(content);
    await run();
    expect(file()).toMatchObject({ status: "error", statusDetails });
  });

  it.each(["files/file-1/rows.jsonl", "files/file-1/faults.jsonl"])(
    "fails, and leaves the file for the next try, when %s cannot be written",
    async (failOn) => {
      const { run, file, writes } = world(`${good}{"text":1}\n`.repeat(20_000), { failOn });
      await expect(run()).rejects.toMatchObject({ code: "ENOSPC" });
      expect(writes()).toBe(0);
      expect(file().status).toBe("uploaded");
    },
  );

  it("leaves deleted files alone", async () => {
    const { run, writes } = world(good, { file: { deletedAt: 1 } });
    await run();
    expect(writes()).toBe(0);
  });
});
