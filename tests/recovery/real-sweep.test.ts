/** A sweep and a cross-validation with the trainer that ships, on tiny random models, and the estimator that ships. */
import { createHash } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { startSweeper } from "../../packages/server/src/app/sweeper.js";
import { type SweepView, withTrials } from "../../packages/server/src/app/sweeps.js";
import type { BaseModel, Store } from "../../packages/server/src/app/ports.js";
import { foldsResult } from "../../packages/server/src/domain/folds.js";
import { scoreOf, type Sweep } from "../../packages/server/src/domain/sweep.js";
import { validateRun } from "../../packages/server/src/app/validate-run.js";
import { localTuner } from "../../packages/server/src/runner/tuner.js";
import { connectStore } from "../../packages/server/src/store/open.js";
import { createTestDatabase, type TestDatabase } from "../../packages/server/test/database.js";
import { eventually, sampleSweep } from "../../packages/server/test/store/samples.js";
import { answeredRows, canonical, makeTinyModel, realTrainer } from "../tiny-model.js";
import { buildParts, dispatch, oneModel, type Parts, patientTimes, queueRun, tinyModel } from "./platform.js";

const tuner = localTuner({
  command: realTrainer.command,
  environment: process.env,
  extraEnvironment: realTrainer.environment,
});

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

/** Until it has ended, with a dispatcher and a sweeper of its own. */
async function carriedOut(parts: Parts, model: BaseModel, sweep: Sweep): Promise<SweepView> {
  const deps = { ...parts, catalogue: oneModel(model) };
  const machine = { memoryBytes: 8e9, cores: 1, name: "test", product: () => null, fourBitsLack: async () => null };
  const dispatcher = dispatch(parts, {
    catalogue: deps.catalogue,
    validate: (run) => validateRun({ ...deps, machine }, run),
    capacity: { maxConcurrent: 1, memoryBytes: 8e9 },
    times: patientTimes,
  });
  const sweeper = startSweeper({ ...deps, tuner }, { tickMs: 200 });
  try {
    await store.sweeps.create(sweep);
    const done = await eventually(
      "the end",
      async () => {
        const now = await store.sweeps.get(sweep.projectId, sweep.id);
        return now !== null && now.finishedAt !== null && now;
      },
      240_000,
    );
    expect(done.status, JSON.stringify(done)).toBe("succeeded");
    return await withTrials({ store }, done);
  } finally {
    await sweeper.close();
    await dispatcher.close();
  }
}

const tiny = { ...tinyModel, numParameters: 2e5, numLayers: 2, hiddenSize: 32, vocabSize: 512, contextLength: 256 };
const request = { suffix: null, task: null, method: null, integrations: null };
const hyperparameters = { num_train_epochs: 1, max_length: 64, per_device_train_batch_size: 8 };
const budget = { trials: null, minutes: null, money: null, pricePerHour: 0 };

it("trains its trials on the same rows, keeps their models, and ends with a verdict", {
  timeout: 300_000,
}, async () => {
  const path = join(home, "decoder");
  makeTinyModel("decoder", path);
  const parts = buildParts(store, home, realTrainer);
  const { trainingFile } = await queueRun(parts, { status: "succeeded" }, canonical(answeredRows));
  const asked = sampleSweep({
    trainingFile,
    request: { ...request, hyperparameters },
    space: { learning_rate: { values: [1e-7, 0.02] } },
    search: "grid",
    budget,
    repeats: 0,
  });
  const { sweep, trials } = await carriedOut(parts, { ...tiny, path }, asked);
  expect(trials.map(({ plan }) => plan.role[0]).join("")).toBe("ass");
  const scores = trials.map((trial) => scoreOf(sweep, trial) ?? Number.NaN);
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
});

it("cross-validates: each row is held out once, nothing is tokenised twice, and every fold is measured", {
  timeout: 300_000,
}, async () => {
  const path = join(home, "encoder");
  makeTinyModel("encoder", path);
  const parts = buildParts(store, home, realTrainer);
  const rows = Array.from({ length: 36 }, (_, n) => ({
    text: `${n % 2 ? "refund the invoice" : "reset the password"} ${n}`,
    label: n % 2 ? "billing" : "login",
  }));
  const projectId = "proj_folds";
  const { trainingFile } = await queueRun(parts, { projectId, status: "succeeded" }, canonical(rows));
  const report = (await store.files.get(projectId, trainingFile))?.report;
  if (report == null) throw new Error("The file has no report.");
  await store.files.setProcessed(projectId, trainingFile, {
    status: "processed",
    statusDetails: null,
    report: { ...report, kind: "classification", labels: { billing: 18, login: 18 }, numUsable: 36 },
  });
  const asked = sampleSweep({
    projectId,
    trainingFile,
    request: { ...request, hyperparameters: { ...hyperparameters, num_train_epochs: 3, learning_rate: 0.01 } },
    space: {},
    search: "grid",
    budget,
    repeats: 0,
    folds: 3,
  });
  const { sweep, trials } = await carriedOut(parts, { ...tiny, family: "encoder", path }, asked);
  const linesIn = (file: string): number[] =>
    readFileSync(file, "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line).line);
  const held: number[] = [];
  for (const { run } of trials) {
    const folder = parts.blobs.localPath(`runs/${run?.id}/rows`);
    const { data } = JSON.parse(readFileSync(join(folder, "..", "spec.json"), "utf8"));
    const trained = [data.train_path, ...data.more_train_paths];
    const bytes = trained.map((file: string) => readFileSync(file));
    expect(createHash("sha256").update(Buffer.concat(bytes)).digest("hex")).toBe(data.train_sha256);
    const validation = linesIn(data.validation_path);
    // 18 of each class over three folds: six of each in every one.
    expect(validation.filter((line) => line % 2 === 0)).toHaveLength(6);
    expect([...trained.flatMap(linesIn), ...validation].sort((a, b) => a - b)).toEqual(
      Array.from({ length: 36 }, (_, n) => n + 1),
    );
    held.push(...validation);
  }
  expect(new Set(held).size).toBe(36);
  // Tokens are named by the content of what they were made of: one file a fold, for all runs.
  const shared = readdirSync(parts.blobs.localPath(`projects/${projectId}/tokens`));
  expect(shared.filter((name) => name.endsWith(".safetensors"))).toHaveLength(3);
  // The base's layers were compared with the rewritten ones by the first run, for all.
  expect(shared.filter((name) => name.startsWith("alike-"))).toHaveLength(1);
  const result = foldsResult(sweep, trials);
  expect(result?.metric).toBe("f1_macro");
  expect(result?.metrics["f1_macro"]).toMatchObject({ folds: 3, interval: [expect.any(Number), expect.any(Number)] });
  expect(result?.metrics["valid_loss"]?.mean).toBeGreaterThan(0);
  expect(new Set(trials.map(({ run }) => run?.fineTunedModel)).size).toBe(3);
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
