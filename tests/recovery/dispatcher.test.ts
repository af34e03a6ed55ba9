import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { Dispatcher } from "../../packages/server/src/app/dispatcher.js";
import type { Store } from "../../packages/server/src/app/ports.js";
import { type Run, type RunStatus, transition } from "../../packages/server/src/domain/job.js";
import { connectStore } from "../../packages/server/src/store/open.js";
import { createTestDatabase, type TestDatabase } from "../../packages/server/test/database.js";
import { eventually } from "../../packages/server/test/store/samples.js";
import { buildParts, dispatch, type Parts, queueRun, quickTimes, type Script } from "./platform.js";

let database: TestDatabase;
let store: Store;
let home: string;
const dispatchers: Dispatcher[] = [];
beforeAll(async () => {
  database = await createTestDatabase();
  store = await connectStore(database.url);
});
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "fettle-recovery-"));
});
afterEach(async () => {
  await Promise.all(dispatchers.splice(0).map((dispatcher) => dispatcher.close()));
  for (const run of await store.runs.withStatus(["validating_files", "queued", "running", "paused"])) {
    await parts({}).runner.kill(run.id);
    await store.runs.update(run.id, (now) => ({ run: { ...now, status: "cancelled" }, events: [] }));
  }
  await rm(home, { recursive: true, force: true });
});
afterAll(async () => {
  await store.close();
  await database.drop();
});

const parts = (script: Script): Parts => buildParts(store, home, { script });
function begin(...args: Parameters<typeof dispatch>): Dispatcher {
  const dispatcher = dispatch(...args);
  dispatchers.push(dispatcher);
  return dispatcher;
}
const read = async (run: Run): Promise<Run> => (await store.runs.get(run.projectId, run.id)) ?? run;
const reaches = (run: Run, status: RunStatus): Promise<Run> =>
  eventually(
    `${run.id} ${status}`,
    async () => {
      const now = await read(run);
      if (now.status !== status && ["failed", "succeeded", "cancelled"].includes(now.status))
        throw new Error(`ended ${now.status}: ${JSON.stringify(now.error)}`);
      return now.status === status ? now : null;
    },
    15_000,
  );
const messages = async (run: Run): Promise<string[]> =>
  (await store.runs.events(run.projectId, run.id, { limit: 1000, order: "asc" })).data.map((event) => event.message);
async function steer(run: Run, type: "pause_requested" | "resume_requested" | "cancel_requested"): Promise<void> {
  await store.runs.update(run.id, (now) => {
    const next = transition(now, { type, at: Date.now() });
    if (!next.ok) throw new Error(next.reason);
    return { run: next.run, events: [] };
  });
}
const stepsOf = async (run: Run): Promise<number[]> =>
  (await store.runs.events(run.projectId, run.id, { limit: 1000, order: "asc" })).data
    .filter((event) => /training loss/.test(event.message))
    .map((event) => Number(event.data?.step));
const oneTo = (n: number): number[] => Array.from({ length: n }, (_, index) => index + 1);

describe("a run from queue to model", () => {
  it("is trained, told in OpenAI's words, and leaves a model, checkpoints and a result file", async () => {
    const own = parts({ steps: 10, checkpointEvery: 2 });
    const run = await queueRun(own);
    begin(own);
    const done = await reaches(run, "succeeded");
    const model = `ft:tiny:proj_a:mine:${run.id.slice(-8)}`;
    expect(done).toMatchObject({
      fineTunedModel: model,
      trainedTokens: 400,
      step: 10,
      totalSteps: 10,
      etaAt: null,
      attempt: 1,
      wanted: null,
    });
    const said = await messages(run);
    expect(said[0]).toBe("Fine-tuning job started");
    expect(said[1]).toBe("20 rows to train on (400 tokens), 2 held out for validation, 10 steps");
    expect(said).toContain("Step 3/10: training loss=0.6667");
    expect(said).toContain("Step 4/10: full validation loss=0.625 (best so far)");
    expect(said.slice(-2)).toEqual([`New fine-tuned model created: ${model}`, "The job has successfully completed"]);
    expect(await stepsOf(run)).toEqual(oneTo(10));
    // Three are kept on the disk; the list shows what can be asked for.
    const { data } = await store.runs.checkpoints("proj_a", run.id, { limit: 10 });
    expect(data.map((checkpoint) => checkpoint.modelName)).toEqual(
      [8, 6, 4].map((step) => `${model}:ckpt-step-${step}`),
    );
    expect(data[0]?.metrics).toMatchObject({ step: 8, train_loss: 0.25, valid_loss: 0.3125 });
    expect(await store.models.get("proj_a", model)).toMatchObject({
      artefact: `runs/${run.id}/artefact`,
      artefactSha256: "1".repeat(64),
      task: "chat",
    });
    const file = await store.files.get("proj_a", done.resultFile ?? "");
    expect(file).toMatchObject({ purpose: "fine-tune-results", status: "processed" });
    const csv = readFileSync(own.blobs.localPath(`files/${done.resultFile}/original`), "utf8").split("\n");
    expect(csv[0]).toBe(
      "step,train_loss,train_mean_token_accuracy,valid_loss,validation_mean_token_accuracy,full_valid_loss,full_valid_mean_token_accuracy",
    );
    expect(csv[2]).toBe("2,1,0.6666666666666667,1.25,0.5,1.25,0.5");
    expect(csv).toHaveLength(12);
  });

  it("waits with position and reason when all places are taken, and projects take turns", async () => {
    const own = parts({ steps: 200, stepMs: 20 });
    const first = await queueRun(own);
    const capacity = { maxConcurrent: 1, memoryBytes: 8e9 };
    begin(own, { capacity });
    await reaches(first, "running");
    const second = await queueRun(own);
    const other = await queueRun(own, { projectId: "proj_b" });
    const waiting = async (run: Run) => (await read(run)).waiting;
    await eventually(
      "both positions",
      async () => (await waiting(second))?.startsWith("Position 2") && (await waiting(other))?.startsWith("Position 1"),
    );
    expect(await waiting(second)).toBe("Position 2 in the queue: 1 run is at work, and at most 1 may be at once.");
    await steer(first, "cancel_requested");
    await reaches(first, "cancelled");
    expect((await reaches(other, "running")).waiting).toBeNull();
    await eventually("the next position", async () => (await waiting(second))?.startsWith("Position 1"));
  });
});

describe("a trainer that ends badly", () => {
  it("killed at two steps: goes on from its checkpoint, every step once", async () => {
    const own = parts({
      steps: 12,
      faults: [
        { step: 5, do: "kill" },
        { step: 8, attempts: 2, do: "kill" },
      ],
    });
    const run = await queueRun(own);
    begin(own);
    const done = await reaches(run, "succeeded");
    expect(done.attempt).toBe(3);
    expect(await stepsOf(run)).toEqual(oneTo(12));
    const said = await messages(run);
    expect(said.filter((message) => message.startsWith("The trainer was killed (SIGKILL)"))).toHaveLength(2);
    expect(said).toContain("Fine-tuning job goes on from the checkpoint at step 3");
    expect(said.filter((message) => message.startsWith("The job has successfully"))).toHaveLength(1);
  });

  it("dying without progress four times: fails with its last words and why", async () => {
    const own = parts({ faults: [{ step: 2, attempts: 99, do: "exit3" }] });
    const run = await queueRun(own);
    begin(own);
    const failed = await reaches(run, "failed");
    expect(failed.attempt).toBe(4);
    expect(failed.error?.code).toBe("training_failed");
    expect(failed.error?.message).toBe(
      'The trainer ended with exit code 3. Its last words:\nTraceback (most recent call last):\n  File "x.py", line 1\nValueError: bad luck',
    );
    expect((await messages(run)).at(-1)).toMatch(/^The job failed: The trainer ended with exit code 3/);
  });

  it("that says why it failed is not tried again", async () => {
    const own = parts({ faults: [{ step: 4, attempts: 99, do: "failed" }] });
    const run = await queueRun(own);
    begin(own);
    const failed = await reaches(run, "failed");
    expect(failed.attempt).toBe(1);
    expect(failed.error).toEqual({
      code: "training_diverged",
      message: "The loss became NaN at step 4. Lower the learning rate.",
      param: null,
    });
  });

  it("stalled: is seen, ended and followed by one that finishes", async () => {
    const own = parts({ faults: [{ step: 4, do: "hang" }] });
    const run = await queueRun(own);
    begin(own);
    const done = await reaches(run, "succeeded");
    expect(done.attempt).toBe(2);
    expect(
      (await messages(run)).some((message) =>
        message.startsWith("The trainer gave no sign of life for 1 s and was ended."),
      ),
    ).toBe(true);
    expect(await stepsOf(run)).toEqual(oneTo(10));
  });

  it("stuck while its heartbeats go on: the user is told, then it is ended and followed by one that finishes", async () => {
    const own = parts({ faults: [{ step: 5, do: "stuck" }] });
    const run = await queueRun(own);
    begin(own);
    await eventually("a word about it", async () =>
      (await messages(run)).some((message) => /^No progress for 1 s while training on a batch\./.test(message)),
    );
    expect((await read(run)).status).toBe("running");
    const done = await reaches(run, "succeeded");
    expect(done.attempt).toBe(2);
    const said = await messages(run);
    expect(said.filter((message) => message.startsWith("No progress for"))).toEqual([
      expect.stringContaining("while training on a batch. The trainer is alive; after 2 s it is ended"),
    ]);
    expect(
      said.some((message) =>
        message.startsWith("The trainer was alive but made no progress for 2 s while training on a batch, and was"),
      ),
    ).toBe(true);
    expect(said).toContain("Fine-tuning job goes on from the checkpoint at step 3");
    expect(await stepsOf(run)).toEqual(oneTo(10));
  });

  it("slow for one step: the user is told once of the pause and once of its end, and nothing is killed", async () => {
    const own = parts({ faults: [{ step: 5, do: "slow", ms: 1_400 }] });
    const run = await queueRun(own);
    begin(own);
    expect((await reaches(run, "succeeded")).attempt).toBe(1);
    const said = await messages(run);
    expect(said.filter((message) => message.startsWith("No progress for"))).toHaveLength(1);
    expect(said.filter((message) => message.startsWith("The trainer makes progress again, after"))).toHaveLength(1);
  });

  it("slow in every step, as its heartbeats foretell: is neither ended nor remarked on", async () => {
    const own = parts({ steps: 4, stepMs: 500, heartbeatMs: 50 });
    const run = await queueRun(own);
    begin(own, { times: { ...quickTimes, idleNoticeMs: 100, idleMs: 200 } });
    expect((await reaches(run, "succeeded")).attempt).toBe(1);
    expect((await messages(run)).filter((message) => message.includes("progress"))).toEqual([]);
  });

  it("with a full disk: pauses the run with the reason, and goes on when resumed", async () => {
    const own = parts({ faults: [{ step: 5, do: "disk_full" }] });
    const run = await queueRun(own);
    begin(own);
    const paused = await reaches(run, "paused");
    expect(paused.waiting).toBe("The disk is full; the last checkpoint is whole. Free space, then resume.");
    await steer(run, "resume_requested");
    expect((await reaches(run, "succeeded")).attempt).toBe(2);
    expect(await stepsOf(run)).toEqual(oneTo(10));
  });

  it("whose program is missing: fails at once and says so", async () => {
    const own = buildParts(store, home, { command: ["/nonexistent/python"] });
    const run = await queueRun(own);
    begin(own);
    const failed = await reaches(run, "failed");
    expect(failed.error?.code).toBe("python_missing");
    expect(failed.error?.message).toContain("its Python was not found");
  });
});

describe("pause, resume, cancel", () => {
  it("pauses at a step border with a checkpoint and goes on there", async () => {
    const own = parts({ steps: 60, stepMs: 10, checkpointEvery: 1000 });
    const run = await queueRun(own);
    begin(own);
    await eventually("a few steps", async () => (await read(run)).step > 3);
    await steer(run, "pause_requested");
    const paused = await reaches(run, "paused");
    expect(paused.waiting).toBe("Paused by request.");
    await steer(run, "resume_requested");
    await reaches(run, "succeeded");
    expect(await stepsOf(run)).toEqual(oneTo(60));
    expect((await messages(run)).filter((message) => /goes on from the checkpoint at step/.test(message))).toHaveLength(
      1,
    );
  });

  it("ends a trainer that does not listen, after the grace", async () => {
    const own = parts({ steps: 5000, stepMs: 10, deafToTerm: true });
    const run = await queueRun(own);
    begin(own);
    await eventually("a step", async () => (await read(run)).step > 0);
    await steer(run, "cancel_requested");
    await reaches(run, "cancelled");
    expect((await own.runner.state(run.id)).alive).toBe(false);
    expect((await messages(run)).at(-1)).toBe("The job was cancelled");
  });
});

describe("several servers", () => {
  it("two dispatchers race for the same runs: each run has one trainer at a time and ends once", async () => {
    const own = parts({ steps: 5 });
    const runs: Run[] = [];
    for (let n = 0; n < 6; n++) runs.push(await queueRun(own));
    const alive = () => false;
    begin(parts({ steps: 5 }), {
      owner: "server-a",
      ownerIsDead: alive,
      capacity: { maxConcurrent: 6, memoryBytes: 64e9 },
    });
    begin(parts({ steps: 5 }), {
      owner: "server-b",
      ownerIsDead: alive,
      capacity: { maxConcurrent: 6, memoryBytes: 64e9 },
    });
    for (const run of runs) {
      expect((await reaches(run, "succeeded")).attempt).toBe(1);
      expect((await messages(run)).filter((message) => message === "Fine-tuning job started")).toHaveLength(1);
      expect((await messages(run)).filter((message) => message.startsWith("The job has successfully"))).toHaveLength(1);
    }
  });

  it("a server that closes leaves the trainer at work; the next one adopts it within a moment", async () => {
    const own = parts({ steps: 100, stepMs: 20 });
    const run = await queueRun(own);
    const first = begin(own);
    await eventually("a step", async () => (await read(run)).step > 0);
    await first.close();
    expect((await own.runner.state(run.id)).alive).toBe(true);
    begin(parts({}), { owner: "the-next" });
    const done = await reaches(run, "succeeded");
    expect(done.attempt).toBe(1);
    expect(await stepsOf(run)).toEqual(oneTo(100));
  });
});
