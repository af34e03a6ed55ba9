import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { ApiKeyRecord, Store, UploadRecord } from "../../src/app/ports.js";
import { connectStore } from "../../src/store/open.js";
import { createTestDatabase, type TestDatabase } from "../database.js";
import { eventually, freshId, sampleEvent, sampleFile, sampleSweep, storedRun } from "./samples.js";

let database: TestDatabase;
let store: Store;
beforeAll(async () => {
  database = await createTestDatabase();
  store = await connectStore(database.url);
});
afterAll(async () => {
  await store.close();
  await database.drop();
});

describe("keys", () => {
  const key: ApiKeyRecord = {
    id: "key_1",
    projectId: "proj_a",
    name: "first",
    role: "admin",
    hint: "…abcd",
    createdAt: 1,
    expiresAt: null,
    revokedAt: null,
    lastUsedAt: null,
  };

  it("is found by the hash of its secret, listed and revoked within its project", async () => {
    await store.keys.create(key, "hash-1");
    expect(await store.keys.findByHash("hash-1")).toEqual(key);
    expect(await store.keys.findByHash("hash-2")).toBeNull();
    await store.keys.touch("key_1", 50);
    await store.keys.touch("key_1", 40);
    expect(await store.keys.revoke("proj_b", "key_1", 60)).toBe(false);
    expect(await store.keys.revoke("proj_a", "key_1", 60)).toBe(true);
    expect(await store.keys.revoke("proj_a", "key_1", 70)).toBe(false);
    expect(await store.keys.list("proj_a")).toEqual([{ ...key, lastUsedAt: 50, revokedAt: 60 }]);
    expect(await store.keys.list("proj_b")).toEqual([]);
    expect(await store.keys.count()).toBe(1);
  });
});

describe("files", () => {
  it("is kept, processed, listed by purpose, expired and deleted within its project", async () => {
    const file = sampleFile({ status: "uploaded", filename: "na\0me", expiresAt: 100 });
    await store.files.create(file);
    await store.files.create(sampleFile({ purpose: "batch" }));
    expect((await store.files.listUnprocessed()).map((found) => found.id)).toEqual([file.id]);
    const report = {
      format: "jsonl" as const,
      kind: null,
      numRows: 1,
      numUsable: 0,
      numFaults: 1,
      faults: [],
      notices: [],
      labels: { z: 1, a: 2 },
      rowsSha256: null,
    };
    await store.files.setProcessed("proj_b", file.id, { status: "error", statusDetails: "foreign", report: null });
    await store.files.setProcessed("proj_a", file.id, { status: "processed", statusDetails: null, report });
    const stored = { ...file, filename: "na\uFFFDme", status: "processed", report };
    expect(await store.files.get("proj_a", file.id)).toEqual(stored);
    expect(Object.keys((await store.files.get("proj_a", file.id))?.report?.labels ?? {})).toEqual(["z", "a"]);
    expect(await store.files.get("proj_b", file.id)).toBeNull();
    expect((await store.files.list("proj_a", { limit: 10, purpose: "fine-tune" })).data).toEqual([stored]);
    expect(await store.files.listExpired(99)).toEqual([]);
    expect((await store.files.listExpired(100)).map((found) => found.id)).toEqual([file.id]);
    expect(await store.files.delete("proj_b", file.id, 5)).toBe("not_found");
    expect(await store.files.delete("proj_a", file.id, 5)).toBe("deleted");
    expect(await store.files.delete("proj_a", file.id, 6)).toBe("not_found");
    expect(await store.files.get("proj_a", file.id)).toBeNull();
  });

  it("cannot be deleted while a run that has not ended reads it", async () => {
    const run = await storedRun(store);
    expect(await store.files.delete("proj_a", run.trainingFile, 5)).toBe("in_use");
    await store.runs.update(run.id, (now) => ({ run: { ...now, status: "cancelled" }, events: [] }));
    expect(await store.files.delete("proj_a", run.trainingFile, 5)).toBe("deleted");
  });

  it("pages in both directions, past a deleted cursor", async () => {
    const ids: string[] = [];
    for (let n = 0; n < 4; n++) {
      const file = sampleFile({ projectId: "proj_page" });
      await store.files.create(file);
      ids.push(file.id);
    }
    await store.files.delete("proj_page", ids[1] ?? "", 1);
    expect((await store.files.list("proj_page", { limit: 2, order: "asc" })).data.map((file) => file.id)).toEqual([
      ids[0],
      ids[2],
    ]);
    expect(
      (await store.files.list("proj_page", { limit: 2, order: "asc", after: ids[1] })).data.map((file) => file.id),
    ).toEqual([ids[2], ids[3]]);
    expect(
      (await store.files.list("proj_page", { limit: 9, order: "desc", after: ids[2] })).data.map((file) => file.id),
    ).toEqual([ids[0]]);
  });
});

describe("uploads", () => {
  const upload: UploadRecord = {
    id: "upload_1",
    projectId: "proj_a",
    filename: "f",
    purpose: "fine-tune",
    bytes: 10,
    mimeType: "text/jsonl",
    status: "pending",
    createdAt: 1,
    expiresAt: 100,
    fileId: null,
  };

  it("takes parts while pending, in the order they came, and nothing afterwards", async () => {
    await store.uploads.create(upload);
    for (const id of ["part_b", "part_a"])
      await store.uploads.addPart("proj_a", { id, uploadId: "upload_1", bytes: 5, createdAt: 2 });
    expect((await store.uploads.parts("proj_a", "upload_1")).map((part) => part.id)).toEqual(["part_b", "part_a"]);
    expect(await store.uploads.parts("proj_b", "upload_1")).toEqual([]);
    await expect(
      store.uploads.addPart("proj_b", { id: freshId("part_"), uploadId: "upload_1", bytes: 5, createdAt: 2 }),
    ).rejects.toMatchObject({ code: "not_found" });
    expect((await store.uploads.listExpired(100)).map((found) => found.id)).toEqual(["upload_1"]);
    await store.uploads.setStatus("proj_a", "upload_1", { status: "completed", fileId: "file-9" });
    await expect(
      store.uploads.setStatus("proj_a", "upload_1", { status: "cancelled", fileId: null }),
    ).rejects.toMatchObject({
      code: "conflict",
      message: expect.stringContaining("upload_1 is completed"),
    });
    await expect(
      store.uploads.addPart("proj_a", { id: "part_c", uploadId: "upload_1", bytes: 5, createdAt: 2 }),
    ).rejects.toMatchObject({ code: "conflict" });
    expect(await store.uploads.get("proj_a", "upload_1")).toEqual({ ...upload, status: "completed", fileId: "file-9" });
    expect(await store.uploads.listExpired(100)).toEqual([]);
  });
});

describe("idempotency", () => {
  const begin = (key: string, hash: string, now = 1000) =>
    store.idempotency.begin("proj_a", key, { bodyHash: hash, now });

  it("lets one of many equal requests through, then replays its answer", async () => {
    const claims = await Promise.all(Array.from({ length: 10 }, () => begin("k1", "h")));
    expect(claims.filter((claim) => claim.state === "new")).toHaveLength(1);
    expect(claims.filter((claim) => claim.state === "busy")).toHaveLength(9);
    expect(await begin("k1", "other")).toEqual({ state: "mismatch" });
    await store.idempotency.finish("proj_a", "k1", { status: 201, body: '{"id":1}' });
    expect(await begin("k1", "h")).toEqual({ state: "replay", status: 201, body: '{"id":1}' });
    expect(await store.idempotency.begin("proj_b", "k1", { bodyHash: "h", now: 1000 })).toEqual({ state: "new" });
  });

  it("frees a key that failed without effect, or whose server died", async () => {
    await begin("k2", "h");
    await store.idempotency.forget("proj_a", "k2");
    expect(await begin("k2", "h2")).toEqual({ state: "new" });
    expect(await begin("k2", "h2", 300_999)).toEqual({ state: "busy" });
    expect(await begin("k2", "h2", 301_001)).toEqual({ state: "new" });
    expect(await store.idempotency.expire(301_002)).toBeGreaterThan(0);
    expect(await begin("k2", "h2", 301_003)).toEqual({ state: "new" });
  });
});

it("says whether the database answers", async () => {
  expect(await store.ping()).toBe(true);
  const closed = await connectStore(database.url);
  await closed.close();
  expect(await closed.ping()).toBe(false);
});

describe("sweeps", () => {
  it("is kept, listed, changed and found until it has ended, within its project", async () => {
    const [first, second] = [sampleSweep(), sampleSweep({ status: "cancelling" })];
    await store.sweeps.create(first);
    await store.sweeps.create(second);
    await store.sweeps.create(sampleSweep({ projectId: "proj_b", status: "succeeded" }));
    expect(await store.sweeps.get("proj_a", first.id)).toEqual(first);
    expect(await store.sweeps.get("proj_b", first.id)).toBeNull();
    const folds = sampleSweep({ folds: 5, status: "succeeded" });
    await store.sweeps.create(folds);
    const page = await store.sweeps.list("proj_a", { limit: 1, kind: "sweep" });
    expect([page.data[0]?.id, page.hasMore]).toEqual([second.id, true]);
    const others = await store.sweeps.list("proj_a", { limit: 9, kind: "cross_validation" });
    expect(others.data).toEqual([folds]);
    const told: string[] = [];
    const stop = store.runs.onChange((id) => told.push(id));
    const ended = await eventually("a change that is told", async () => {
      const changed = await store.sweeps.update(first.id, (now) => ({ ...now, status: "failed" }));
      return told.includes(first.id) && changed;
    });
    stop();
    expect(ended).toEqual({ ...first, status: "failed" });
    expect(await store.sweeps.update(second.id, () => null)).toBeNull();
    expect(await store.sweeps.update("sweep-none", (now) => now)).toBeNull();
    expect((await store.sweeps.unended()).map(({ id }) => id)).toEqual([second.id]);
  });

  it("is told the evaluations of its runs, in order; a run of a known id is not made again", async () => {
    const run = await storedRun(store);
    const data = { step: 2, total_steps: 4, full_valid_loss: 0.5, valid_loss: 0.5, accuracy: 0.75, best: true };
    const events = [
      sampleEvent("evaluation:2", { data, createdAt: 10 }),
      sampleEvent("evaluation:4", { data: { ...data, step: 4, best: false }, createdAt: 20 }),
      sampleEvent("step:4", { data: { step: 4, train_loss: 1 } }),
    ];
    await store.runs.update(run.id, (now) => ({ run: now, events }));
    const found = await store.runs.evaluated([run.id, "ftjob-none"]);
    expect([...found.keys()]).toEqual([run.id]);
    expect(found.get(run.id)).toEqual({
      run,
      evaluations: [
        { step: 2, at: 10, loss: 0.5, best: true, metrics: { accuracy: 0.75 } },
        { step: 4, at: 20, loss: 0.5, best: false, metrics: { accuracy: 0.75 } },
      ],
    });
    expect(await store.runs.create({ ...run, seed: 99 }, [sampleEvent("created")])).toBe("exists");
    expect((await store.runs.get("proj_a", run.id))?.seed).toBe(run.seed);
  });
});
