import pg from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { StaleLease, type Store } from "../../src/app/ports.js";
import { connectStore } from "../../src/store/open.js";
import { createTestDatabase, type TestDatabase } from "../database.js";
import { eventually, freshId, sampleEvent, sampleFile, sampleRun, storedRun } from "./samples.js";

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

describe("runs", () => {
  it("keeps a run as it was given, with text PostgreSQL would refuse made harmless", async () => {
    const run = await storedRun(store, { metadata: { "a\0": "x\0y", lone: "\ud800" }, labels: ["b", "a"] });
    const { metadata, ...rest } = run;
    expect(await store.runs.get("proj_a", run.id)).toEqual({
      ...rest,
      metadata: { "a\uFFFD": "x\uFFFDy", lone: "\uFFFD" },
    });
  });

  it("answers nothing of another project", async () => {
    const run = await storedRun(store);
    expect(await store.runs.get("proj_b", run.id)).toBeNull();
    expect((await store.runs.list("proj_b", { limit: 10 })).data).toEqual([]);
    expect((await store.runs.events("proj_b", run.id, { limit: 10, order: "asc" })).data).toEqual([]);
    expect((await store.runs.checkpoints("proj_b", run.id, { limit: 10 })).data).toEqual([]);
  });

  it("refuses a run whose file is deleted, foreign or unknown", async () => {
    const file = sampleFile();
    await store.files.create(file);
    expect(await store.files.delete("proj_a", file.id, 1)).toBe("deleted");
    expect(await store.runs.create(sampleRun({ trainingFile: file.id }), [])).toBe("file_gone");
    const foreign = sampleFile({ projectId: "proj_b" });
    await store.files.create(foreign);
    expect(await store.runs.create(sampleRun({ trainingFile: foreign.id }), [])).toBe("file_gone");
    expect(await store.runs.create(sampleRun({ validationFile: "file-nowhere" }), [])).toBe("file_gone");
  });

  it("lets either the run or the deletion of its file win, never both", async () => {
    for (let round = 0; round < 20; round++) {
      const file = sampleFile();
      await store.files.create(file);
      const [created, deleted] = await Promise.all([
        store.runs.create(sampleRun({ trainingFile: file.id }), []),
        store.files.delete("proj_a", file.id, 1),
      ]);
      expect([`${created} ${deleted}`]).toContainEqual(created === "created" ? "created in_use" : "file_gone deleted");
    }
  });

  it("gives the newest runs of a project that succeeded", async () => {
    const projectId = "proj_learning";
    const first = await storedRun(store, { projectId, status: "succeeded", trainSeconds: 12.5 });
    const second = await storedRun(store, { projectId, status: "succeeded" });
    await storedRun(store, { projectId, status: "failed" });
    await storedRun(store, { projectId });
    await storedRun(store, { status: "succeeded", projectId: "proj_b" });
    expect((await store.runs.succeeded(projectId, 9)).map((run) => [run.id, run.trainSeconds])).toEqual([
      [second.id, undefined],
      [first.id, 12.5],
    ]);
    expect((await store.runs.succeeded(projectId, 1)).map((run) => run.id)).toEqual([second.id]);
  });

  it("pages newest first by cursor, and filters by metadata", async () => {
    const ids: string[] = [];
    for (let n = 0; n < 5; n++)
      ids.push((await storedRun(store, { projectId: "proj_page", metadata: { n: String(n), team: "x" } })).id);
    const first = await store.runs.list("proj_page", { limit: 2 });
    expect(first.data.map((run) => run.id)).toEqual([ids[4], ids[3]]);
    expect(first.hasMore).toBe(true);
    const rest = await store.runs.list("proj_page", { limit: 3, after: ids[3] });
    expect(rest.data.map((run) => run.id)).toEqual([ids[2], ids[1], ids[0]]);
    expect(rest.hasMore).toBe(false);
    const filtered = await store.runs.list("proj_page", { limit: 3, metadata: { n: "3", team: "x" } });
    expect(filtered.data.map((run) => run.id)).toEqual([ids[3]]);
    expect((await store.runs.list("proj_page", { limit: 3, after: "ftjob-unknown" })).data).toEqual([]);
  });

  it("changes a run and writes its events in one transaction", async () => {
    const run = await storedRun(store);
    await expect(
      store.runs.update(run.id, (now) => ({
        run: { ...now, step: 9 },
        events: [sampleEvent("x", { level: "loud" as "info" })],
      })),
    ).rejects.toThrow(/check constraint/);
    expect((await store.runs.get("proj_a", run.id))?.step).toBe(0);
    await store.runs.update(run.id, (now) => ({ run: { ...now, step: 9 }, events: [sampleEvent("x")] }));
    expect((await store.runs.get("proj_a", run.id))?.step).toBe(9);
    expect(await store.runs.update("ftjob-unknown", (now) => ({ run: now, events: [] }))).toBeNull();
  });

  it("numbers events 1, 2, 3 … without gap or double under concurrent writers", async () => {
    const run = await storedRun(store);
    const writers = Array.from({ length: 8 }, (_, writer) =>
      Promise.all(
        Array.from({ length: 5 }, (_, n) =>
          store.runs.update(run.id, (now) => ({
            run: now,
            events: [sampleEvent(`w${writer}:${n}`), sampleEvent("shared")],
          })),
        ),
      ),
    );
    await Promise.all(writers);
    const { data } = await store.runs.events("proj_a", run.id, { limit: 1000, order: "asc" });
    expect(data.map((event) => event.seq)).toEqual(Array.from({ length: 42 }, (_, n) => n + 1));
    expect(data.filter((event) => event.message === "shared")).toHaveLength(1);
  });

  it("feeds events in both directions, after a cursor and since a number", async () => {
    const run = await storedRun(store);
    await store.runs.update(run.id, (now) => ({
      run: now,
      events: ["a", "b", "c", "d"].map((key) => sampleEvent(key, { data: { z: 1, a: key } })),
    }));
    const newest = await store.runs.events("proj_a", run.id, { limit: 2, order: "desc" });
    expect(newest.data.map((event) => event.message)).toEqual(["d", "c"]);
    expect(newest.hasMore).toBe(true);
    const older = await store.runs.events("proj_a", run.id, { limit: 5, order: "desc", after: newest.data[1]?.id });
    expect(older.data.map((event) => event.message)).toEqual(["b", "a", "created"]);
    const since = await store.runs.events("proj_a", run.id, { limit: 5, order: "asc", sinceSeq: 3 });
    expect(since.data.map((event) => event.message)).toEqual(["c", "d"]);
    expect(since.data[0]?.data).toEqual({ z: 1, a: "c" });
  });
});

describe("leases", () => {
  it("has one owner among many that race", async () => {
    const run = await storedRun(store);
    const leases = await Promise.all(
      Array.from({ length: 10 }, (_, n) => store.runs.acquire(run.id, `server-${n}`, { ttlMs: 30_000 })),
    );
    expect(leases.filter((lease) => lease !== null)).toHaveLength(1);
  });

  it("passes on when it expires, is released, or its owner is dead; each time with a higher token", async () => {
    const run = await storedRun(store);
    const first = await store.runs.acquire(run.id, "one", { ttlMs: 30_000 });
    expect(first?.token).toBe(1);
    expect((await store.runs.acquire(run.id, "one", { ttlMs: 30_000 }))?.token).toBe(1);
    expect(await store.runs.acquire(run.id, "two", { ttlMs: 30_000 })).toBeNull();
    expect((await store.runs.acquire(run.id, "two", { ttlMs: 0, isDead: (owner) => owner === "one" }))?.token).toBe(2);
    const third = await eventually("expiry", () => store.runs.acquire(run.id, "three", { ttlMs: 30_000 }));
    expect(third.token).toBe(3);
    await store.runs.release(third);
    expect((await store.runs.acquire(run.id, "four", { ttlMs: 30_000 }))?.token).toBe(4);
    expect(await store.runs.renew(third, 30_000)).toBe(false);
  });

  it("refuses every write of a stale lease", async () => {
    const run = await storedRun(store);
    const old = await store.runs.acquire(run.id, "old", { ttlMs: 0 });
    if (!old) throw new Error("the lease was free");
    const fresh = await eventually("expiry", () => store.runs.acquire(run.id, "fresh", { ttlMs: 30_000 }));
    await expect(
      store.runs.update(run.id, (now) => ({ run: { ...now, step: 1 }, events: [] }), old),
    ).rejects.toBeInstanceOf(StaleLease);
    await expect(
      store.runs.ingest(old, { events: [sampleEvent("late")], offset: 10, checkpoints: [] }),
    ).rejects.toBeInstanceOf(StaleLease);
    await store.runs.ingest(fresh, { events: [sampleEvent("step:1")], offset: 10, checkpoints: [] });
    const { data } = await store.runs.events("proj_a", run.id, { limit: 10, order: "asc" });
    expect(data.map((event) => event.message)).toEqual(["created", "step:1"]);
    expect(await store.runs.offset(run.id)).toBe(10);
  });
});

describe("ingest", () => {
  it("writes events, checkpoints, model, result file, state and offset once, however often it is repeated", async () => {
    const run = await storedRun(store, { status: "running" });
    const lease = await store.runs.acquire(run.id, "me", { ttlMs: 30_000 });
    if (!lease) throw new Error("the lease was free");
    const file = sampleFile({ purpose: "fine-tune-results" });
    const input = () => ({
      events: [sampleEvent("step:1"), sampleEvent("step:2")],
      offset: 99,
      checkpoints: [
        {
          id: freshId("ftckpt_"),
          runId: run.id,
          step: 2,
          modelName: `ft:tiny:o::${run.id}:ckpt-step-2`,
          path: "checkpoints/2",
          metrics: { train_loss: 0.5 },
          createdAt: 5,
        },
      ],
      model: {
        name: `ft:tiny:o::${run.id}`,
        projectId: "proj_a",
        runId: run.id,
        baseModel: "tiny",
        task: "classification" as const,
        method: "lora" as const,
        artefact: `runs/${run.id}/artefact`,
        artefactSha256: "1".repeat(64),
        labels: ["10", "9"],
        createdAt: 6,
      },
      file,
      change: (now: typeof run) => ({ ...now, status: "succeeded" as const }),
    });
    await store.runs.ingest(lease, input());
    await store.runs.ingest(lease, input());
    expect(
      (await store.runs.events("proj_a", run.id, { limit: 10, order: "asc" })).data.map((event) => event.seq),
    ).toEqual([1, 2, 3]);
    const { data } = await store.runs.checkpoints("proj_a", run.id, { limit: 10 });
    expect(data.map((checkpoint) => [checkpoint.step, checkpoint.metrics])).toEqual([[2, { train_loss: 0.5 }]]);
    expect((await store.models.get("proj_a", `ft:tiny:o::${run.id}`))?.labels).toEqual(["10", "9"]);
    expect((await store.models.checkpoint("proj_a", data[0]?.modelName ?? ""))?.path).toBe("checkpoints/2");
    expect(await store.models.checkpoint("proj_b", data[0]?.modelName ?? "")).toBeNull();
    expect((await store.files.get("proj_a", file.id))?.purpose).toBe("fine-tune-results");
    expect((await store.runs.get("proj_a", run.id))?.status).toBe("succeeded");
  });
});

describe("changes told to other processes", () => {
  it("tells every change, and after a lost connection the ones that were missed", async () => {
    const run = await storedRun(store);
    const other = await connectStore(database.url);
    const heard: string[] = [];
    const stop = other.runs.onChange((id) => heard.push(id));
    await eventually("first word", async () => {
      await store.runs.update(run.id, (now) => ({ run: now, events: [] }));
      return heard.includes(run.id);
    });
    const admin = new pg.Client({ connectionString: database.url });
    await admin.connect();
    await admin.query(
      "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'fettle-feed' and datname = current_database()",
    );
    await admin.end();
    heard.length = 0;
    await store.runs.update(run.id, (now) => ({ run: now, events: [] }));
    await eventually("word after reconnecting", () => heard.includes(run.id));
    stop();
    await other.close();
  });
});
