import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { Blobs, Clock, Log, Store } from "../../src/app/ports.js";
import { type BackgroundOptions, type StartedBackground, startBackground } from "../../src/background/dbos.js";
import { sweepExpired } from "../../src/background/sweep.js";
import { localBlobs } from "../../src/blobs/local.js";
import { AppError } from "../../src/domain/error.js";
import { connectStore } from "../../src/store/open.js";
import { createTestDatabase, type TestDatabase } from "../database.js";
import { eventually, freshId, sampleFile, storedRun } from "../store/samples.js";

let database: TestDatabase;
let store: Store;
let folder: string;
let blobs: Blobs;
let background: StartedBackground | null = null;
const errors: string[] = [];
const clock: Clock = {
  now: () => Date.now(),
  every: () => () => undefined,
  sleep: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
};
const log: Log = { info: () => undefined, warn: () => undefined, error: (_, message) => errors.push(message) };

beforeEach(async () => {
  database = await createTestDatabase();
  store = await connectStore(database.url);
  folder = await mkdtemp(join(tmpdir(), "fettle-background-"));
  blobs = localBlobs(folder);
  errors.length = 0;
});
afterEach(async () => {
  await background?.close();
  background = null;
  await store.close();
  await database.drop();
  await rm(folder, { recursive: true, force: true });
});

function start(
  processFile: BackgroundOptions["processFile"],
  change: Partial<BackgroundOptions> = {},
): StartedBackground {
  background = startBackground({
    databaseUrl: database.url,
    executorId: "test",
    processFile,
    store,
    blobs,
    clock,
    log,
    maxAttempts: 3,
    retrySeconds: 0.02,
    ...change,
  });
  return background;
}
const processed = (projectId: string, fileId: string) =>
  store.files.setProcessed(projectId, fileId, { status: "processed", statusDetails: null, report: null });
async function uploaded(): Promise<string> {
  const file = sampleFile({ status: "uploaded" });
  await store.files.create(file);
  return file.id;
}
const statusIs = (id: string, status: string) =>
  eventually(`${id} ${status}`, async () =>
    (await store.files.get("proj_a", id))?.status === status ? store.files.get("proj_a", id) : null,
  );

describe("background work", () => {
  it("takes up what was uploaded before it was ready, and does each file once however often it is asked", async () => {
    const done: string[] = [];
    const early = await uploaded();
    const running = start(async (projectId, fileId) => {
      done.push(fileId);
      await processed(projectId, fileId);
    });
    await running.processFile("proj_a", early);
    expect(await running.ready).toBe(true);
    await statusIs(early, "processed");
    const late = await uploaded();
    await Promise.all([running.processFile("proj_a", late), running.processFile("proj_a", late)]);
    await statusIs(late, "processed");
    expect(done).toEqual([early, late]);
  });

  it("tries again after a failure, and gives up with the reason", async () => {
    let tries = 0;
    const running = start(async (projectId, fileId) => {
      tries += 1;
      if (tries < 3) throw new Error("not yet");
      await processed(projectId, fileId);
    });
    await running.ready;
    const mended = await uploaded();
    await running.processFile("proj_a", mended);
    await statusIs(mended, "processed");
    expect(tries).toBe(3);
    await running.close();

    const broken = await uploaded();
    start(async () => {
      throw new AppError("disk_full", "No space left.");
    });
    expect((await statusIs(broken, "error"))?.statusDetails).toBe(
      "The file could not be read: No space left. Upload it again.",
    );
  });

  it("goes on alone, and says so, when DBOS cannot start", async () => {
    const file = await uploaded();
    const running = start(processed, { databaseUrl: "postgres://nobody:x@127.0.0.1:9/none" });
    expect(await running.ready).toBe(false);
    expect(errors.some((message) => message.startsWith("DBOS could not start"))).toBe(true);
    await statusIs(file, "processed");
    const next = await uploaded();
    await running.processFile("proj_a", next);
    await statusIs(next, "processed");
  });
});

describe("sweep", () => {
  it("ends expired files, uploads and stored answers, and keeps a file that a run reads", async () => {
    const bytes = async function* (): AsyncIterable<Uint8Array> {
      yield Buffer.from("x");
    };
    const old = sampleFile({ expiresAt: 100 });
    const read = sampleFile({ expiresAt: 100 });
    for (const file of [old, read]) await store.files.create(file);
    await store.runs.create({ ...(await storedRun(store)), id: freshId("ftjob-"), trainingFile: read.id }, []);
    await blobs.put(`files/${old.id}/original`, bytes());
    const tokens = (project: string): string => `projects/${project}/tokens/x.safetensors`;
    for (const project of ["proj_a", "proj_b"]) await blobs.put(tokens(project), bytes());
    await store.uploads.create({
      id: "upload_1",
      projectId: "proj_a",
      filename: "f",
      purpose: "fine-tune",
      bytes: 1,
      mimeType: "x",
      status: "pending",
      createdAt: 1,
      expiresAt: 100,
      fileId: null,
    });
    await blobs.put("uploads/upload_1/part_1", bytes());
    await store.idempotency.begin("proj_a", "k", { bodyHash: "h", now: 5 });
    const now = 100 + 24 * 3_600_000;
    expect(await sweepExpired({ store, blobs }, now)).toEqual({ files: 1, uploads: 1, answers: 1 });
    expect(await store.files.get("proj_a", old.id)).toBeNull();
    expect(await blobs.size(`files/${old.id}/original`)).toBeNull();
    // Its tokens too, and nobody else's.
    expect([await blobs.size(tokens("proj_a")), await blobs.size(tokens("proj_b"))]).toEqual([null, 1]);
    expect((await store.files.get("proj_a", read.id))?.id).toBe(read.id);
    expect((await store.uploads.get("proj_a", "upload_1"))?.status).toBe("expired");
    expect(await blobs.size("uploads/upload_1/part_1")).toBeNull();
    expect(await sweepExpired({ store, blobs }, now)).toEqual({ files: 0, uploads: 0, answers: 0 });
  });
});
