/** A server with a sweep, killed again and again: the sweep ends as one that nobody disturbed. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { nextActions, scoreOf, type Sweep, type Trial } from "../../packages/server/src/domain/sweep.js";
import { withTrials } from "../../packages/server/src/app/sweeps.js";
import { connectStore } from "../../packages/server/src/store/open.js";
import { startPostgres } from "../../packages/server/src/store/postgres.js";
import { eventually, sampleSweep } from "../../packages/server/test/store/samples.js";
import { queueRun } from "./platform.js";
import { seeded } from "./seeded.js";
import { startServerProcess } from "./servers.js";

const script = { steps: 6, stepMs: 30, checkpointEvery: 2, bestLearningRate: 0.01 };
const budget = { trials: 4, minutes: null, money: null, pricePerHour: 0 };

it("sweeps and cross-validations whose server is killed lose no trial, double none, and find what they would have found", {
  timeout: 120_000,
}, async () => {
  const home = await mkdtemp(join(tmpdir(), "fettle-sweeps-"));
  const seed = Date.now() % 100_000;
  const random = seeded(seed);
  const start = () => startServerProcess({ home, databaseUrl: null, script });
  let server = await start();
  const store = await connectStore((await startPostgres({ home })).url);
  try {
    const { trainingFile } = await queueRun({ store, home }, { status: "succeeded" });
    const asked = { trainingFile, budget, repeats: 1 };
    const [calm, troubled] = [sampleSweep(asked), sampleSweep(asked)];
    const ended = async (sweep: Sweep): Promise<Trial[]> => {
      const done = await eventually(
        `the end of ${sweep.id}, seed ${seed}`,
        async () => {
          const now = await store.sweeps.get("proj_a", sweep.id);
          return now !== null && now.finishedAt !== null && now;
        },
        60_000,
      );
      expect(done.status, JSON.stringify(done.error)).toBe("succeeded");
      return (await withTrials({ store }, done)).trials;
    };
    const kills = async (count: number): Promise<void> => {
      for (let kill = 0; kill < count; kill += 1) {
        await new Promise((resolve) => setTimeout(resolve, 200 + random() * 900));
        await server.kill("SIGKILL");
        server = await start();
      }
    };
    await store.sweeps.create(calm);
    const undisturbed = await ended(calm);
    await store.sweeps.create(troubled);
    await kills(4);
    const trials = await ended(troubled);
    const facts = (all: Trial[]) =>
      all.map((trial) => ({
        ...trial.plan,
        runId: "",
        status: trial.run?.status,
        score: scoreOf(troubled, trial),
      }));
    expect(facts(trials), `seed ${seed}`).toEqual(facts(undisturbed));
    expect(trials.map(({ plan }) => plan.role[0]).join("")).toBe("asssrr");
    // No run that is not a trial's: one was made for each plan.
    const runs = await store.runs.list("proj_a", { limit: 100, metadata: { sweep: troubled.id } });
    expect(runs.data.map((run) => run.id).sort()).toEqual(trials.map(({ plan }) => plan.runId).sort());
    expect(nextActions({ ...troubled, status: "succeeded" }, trials, Date.now())).toEqual([]);

    const none = { trials: null, minutes: null, money: null, pricePerHour: 0 };
    const folds = sampleSweep({ trainingFile, space: {}, search: "grid", budget: none, repeats: 0, folds: 5 });
    await store.sweeps.create(folds);
    await kills(3);
    const held = await ended(folds);
    expect(
      held.map(({ run }) => [run?.status, run?.split?.fold]),
      `seed ${seed}`,
    ).toEqual([0, 1, 2, 3, 4].map((number) => ["succeeded", { number, of: 5 }]));
    const made = await store.runs.list("proj_a", { limit: 100, metadata: { cross_validation: folds.id } });
    expect(made.data.map((run) => run.id).sort()).toEqual(held.map(({ plan }) => plan.runId).sort());
  } finally {
    await server.kill("SIGTERM");
    await store.close();
    await rm(home, { recursive: true, force: true });
  }
});
