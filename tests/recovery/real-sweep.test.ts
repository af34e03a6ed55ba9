/** A sweep with the trainer that ships, on a tiny random model, and the estimator that ships. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, it } from "vitest";
import { startSweeper } from "../../packages/server/src/app/sweeper.js";
import { withTrials } from "../../packages/server/src/app/sweeps.js";
import type { Store } from "../../packages/server/src/app/ports.js";
import { scoreOf } from "../../packages/server/src/domain/sweep.js";
import { validateRun } from "../../packages/server/src/app/validate-run.js";
import { localTuner } from "../../packages/server/src/runner/tuner.js";
import { connectStore } from "../../packages/server/src/store/open.js";
import { createTestDatabase, type TestDatabase } from "../../packages/server/test/database.js";
import { eventually, sampleSweep } from "../../packages/server/test/store/samples.js";
import { buildParts, dispatch, oneModel, queueRun, quickTimes, tinyModel } from "./platform.js";

const root = fileURLToPath(new URL("../..", import.meta.url));
const command = [join(root, ".venv", "bin", "python"), "-m", "fettle_trainer"];
const paths = [join(root, "trainer", "src"), join(root, "trainer", "tests")].join(":");
const environment = { PYTHONPATH: paths, HF_HUB_OFFLINE: "1" };
const tuner = localTuner({ command, environment: process.env, extraEnvironment: environment });

let database: TestDatabase;
let store: Store;
let home: string;
beforeAll(async () => {
  database = await createTestDatabase();
  store = await connectStore(database.url);
  home = mkdtempSync(join(tmpdir(), "fettle-real-sweep-"));
});
afterAll(async () => {
  await store.close();
  await database.drop();
  rmSync(home, { recursive: true, force: true });
});

const rows = Array.from({ length: 40 }, (_, n) => ({
  line: n + 1,
  messages: [
    { role: "user", content: `question ${n} about billing and login` },
    { role: "assistant", content: n % 2 ? "refund the invoice" : "reset the password" },
  ],
}));

it("trains its trials on the same rows, keeps their models, and ends with a verdict", {
  timeout: 300_000,
}, async () => {
  const model = join(home, "model");
  const make = "import sys, pathlib, tiny; tiny.make_decoder(pathlib.Path(sys.argv[1]))";
  execFileSync(command[0] ?? "", ["-c", make, model], { env: { ...process.env, ...environment }, stdio: "inherit" });
  const parts = buildParts(store, home, { command, environment });
  const base = { ...tinyModel, path: model, numParameters: 2e5, numLayers: 2, hiddenSize: 32, contextLength: 256 };
  const deps = { ...parts, catalogue: oneModel({ ...base, vocabSize: 512 }) };
  const machine = { memoryBytes: 8e9, cores: 1, name: "test", product: () => null };
  const dispatcher = dispatch(parts, {
    catalogue: deps.catalogue,
    validate: (run) => validateRun({ ...deps, machine }, run),
    capacity: { maxConcurrent: 1, memoryBytes: 8e9 },
    times: { ...quickTimes, stallMs: 60_000, idleMs: 60_000, startupMs: 120_000, graceMs: 60_000 },
  });
  const sweeper = startSweeper({ ...deps, tuner }, { tickMs: 200 });
  try {
    const text = rows.map((row) => `${JSON.stringify(row)}\n`).join("");
    const { trainingFile } = await queueRun(parts, { status: "succeeded" }, text);
    const request = { suffix: null, task: null, method: null, integrations: null };
    const hyperparameters = { num_train_epochs: 1, max_length: 64, per_device_train_batch_size: 8 };
    const sweep = sampleSweep({
      trainingFile,
      request: { ...request, hyperparameters },
      space: { learning_rate: { values: [1e-7, 0.02] } },
      search: "grid",
      budget: { trials: null, minutes: null, money: null, pricePerHour: 0 },
      repeats: 0,
    });
    await store.sweeps.create(sweep);
    const done = await eventually(
      "the end",
      async () => {
        const now = await store.sweeps.get("proj_a", sweep.id);
        return now !== null && now.finishedAt !== null && now;
      },
      240_000,
    );
    expect(done.status, JSON.stringify(done)).toBe("succeeded");
    const { trials } = await withTrials({ store }, done);
    expect(trials.map(({ plan }) => plan.role[0]).join("")).toBe("ass");
    const scores = trials.map((trial) => scoreOf(done, trial) ?? Number.NaN);
    const rate = (number: number): unknown => trials[number]?.plan.values.learning_rate;
    const [fast, slow] = rate(1) === 0.02 ? [1, 2] : [2, 1];
    // What hardly learns is worse than what learns; the same seed and values give the same bits.
    expect(scores[fast]).toBeLessThan(scores[slow] ?? 0);
    expect(trials.every(({ run }) => run?.fineTunedModel !== null)).toBe(true);
    const held = await Promise.all(
      trials.map(({ run }) => parts.blobs.get(`runs/${run?.id}/rows/validation.jsonl`).then(textOf)),
    );
    expect(new Set(held).size).toBe(1);
    expect(held[0]?.trim().split("\n")).toHaveLength(4);
  } finally {
    await sweeper.close();
    await dispatcher.close();
  }
});

async function textOf(bytes: AsyncIterable<Uint8Array> | null): Promise<string> {
  const parts: Uint8Array[] = [];
  for await (const part of bytes ?? []) parts.push(part);
  return Buffer.concat(parts).toString("utf8");
}

it("asks the estimator in a process of its own: the same question, the same answer", { timeout: 60_000 }, async () => {
  const question = {
    dimensions: [
      { name: "learning_rate", min: 1e-5, max: 0.1, log: true, whole: false },
      { name: "lora_r", values: [4, 8] },
    ],
    direction: "minimize",
    seed: 3,
    trials: Array.from({ length: 8 }, (_, n) => ({
      values: { learning_rate: 10 ** (-1 - n / 2), lora_r: n % 2 ? 4 : 8 },
      state: "succeeded",
      score: Math.abs(n - 3),
      points: [[1, n]],
    })),
  } as Parameters<typeof tuner.suggest>[0];
  const [one, again, shares] = await Promise.all([
    tuner.suggest(question),
    tuner.suggest(question),
    tuner.importance(question),
  ]);
  expect(again).toEqual(one);
  expect(one.learning_rate).toBeGreaterThanOrEqual(1e-5);
  expect([4, 8]).toContain(one.lora_r);
  expect(shares).toEqual({ learning_rate: expect.any(Number), lora_r: expect.any(Number) });
  const broken = localTuner({ command: [process.execPath, "-e", "process.exit(3)"], environment: {} });
  await expect(broken.suggest(question)).rejects.toThrow("tune suggest ended with 3");
});
