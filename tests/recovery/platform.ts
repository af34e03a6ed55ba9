/** The parts of a server that recovery is about, put together on a given database and folder. */
import { createHash, randomBytes } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Hyperparameters } from "@fettle/contract";
import { type Dispatcher, type DispatcherOptions, startDispatcher } from "../../packages/server/src/app/dispatcher.js";
import type {
  BaseModel,
  Catalogue,
  Clock,
  Exporter,
  Ids,
  Log,
  Store,
  Tuner,
} from "../../packages/server/src/app/ports.js";
import type { WatchDeps } from "../../packages/server/src/app/watch.js";
import { localBlobs } from "../../packages/server/src/blobs/local.js";
import { type Run, transition } from "../../packages/server/src/domain/job.js";
import { localExporter } from "../../packages/server/src/runner/exporter.js";
import { localRunner } from "../../packages/server/src/runner/local.js";
import { ownerIsDead, thisOwner } from "../../packages/server/src/runner/process-identity.js";

export const clock: Clock = {
  now: () => Date.now(),
  every: (ms, fn) => {
    const timer = setInterval(fn, ms);
    return () => clearInterval(timer);
  },
  sleep: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
};
const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
export const ids: Ids = {
  make: (prefix) => prefix + Array.from(randomBytes(24), (byte) => alphabet[byte % 62]).join(""),
  bytes: (n) => randomBytes(n),
};
/** Errors alone, on stderr: a test that fails shows them. */
export const quietLog: Log = {
  info: () => undefined,
  warn: () => undefined,
  error: (fields, message) =>
    process.stderr.write(
      `${message} ${JSON.stringify(fields, (_, value: unknown) => (value instanceof Error ? value.stack : value))}\n`,
    ),
};

type Fault = "kill" | "hang" | "stuck" | "slow" | "exit3" | "disk_full" | "failed";

export interface Script {
  steps?: number;
  stepMs?: number;
  checkpointEvery?: number;
  heartbeatMs?: number;
  deafToTerm?: boolean;
  /** The validation loss is least at this learning rate, and a little different with each seed. */
  bestLearningRate?: number;
  faults?: { step: number; attempts?: number; do: Fault; ms?: number }[];
}

export const scriptedTrainer = [process.execPath, fileURLToPath(new URL("./scripted-trainer.mjs", import.meta.url))];

/** One base model that needs no files. */
export function oneModel(model: BaseModel): Catalogue {
  return {
    list: async () => [model],
    find: async (name) => (name === model.name ? model : null),
    prepare: async () => model,
  };
}
export const tinyModel: BaseModel = {
  name: "tiny",
  family: "decoder",
  path: "/nonexistent/tiny",
  numParameters: 1,
  hiddenSize: 1,
  numLayers: 1,
  vocabSize: 1,
  contextLength: 8,
  licence: "none",
  source: "local",
};

export interface Parts extends WatchDeps {
  home: string;
  exporter: Exporter;
}

export function buildParts(
  store: Store,
  home: string,
  trainer: { command?: readonly string[]; script?: Script; environment?: Record<string, string> } = {},
): Parts {
  const runsFolder = join(home, "blobs", "runs");
  mkdirSync(runsFolder, { recursive: true });
  const runner = localRunner({
    runsFolder,
    command: trainer.command ?? scriptedTrainer,
    environment: process.env,
    extraEnvironment: { FETTLE_SCRIPT: JSON.stringify(trainer.script ?? {}), ...trainer.environment },
  });
  const exporter = localExporter({
    command: trainer.command ?? scriptedTrainer,
    environment: process.env,
    extraEnvironment: trainer.environment ?? {},
    numThreads: 1,
    log: quietLog,
  });
  return { home, store, runner, exporter, blobs: localBlobs(join(home, "blobs")), clock, ids, log: quietLog };
}

/** For sweeps that ask no estimator. */
export const noTuner: Tuner = {
  suggest: () => Promise.reject(new Error("nobody to ask")),
  importance: async () => ({}),
};

/** What validation comes to, without looking at any row. */
const accept = (store: Store, run: Run): Promise<unknown> =>
  store.runs.update(run.id, (now) => {
    const { learning_rate_multiplier = 1, ...given } = now.request.hyperparameters;
    const learning_rate = given.learning_rate ?? hyperparameters.learning_rate * learning_rate_multiplier;
    const next = transition(now, {
      type: "validated",
      task: "chat",
      method: "lora",
      hyperparameters: { ...hyperparameters, ...given, learning_rate },
      labels: null,
      estimate: null,
    });
    return next.ok ? { run: next.run, events: [] } : null;
  });

/** Times shortened so that a test takes seconds; the proportions stay. */
export const quickTimes = {
  leaseMs: 3_000,
  renewMs: 300,
  pollMs: 40,
  stallMs: 1_000,
  startupMs: 20_000,
  idleNoticeMs: 600,
  idleMs: 2_000,
  unmarkedMs: 60_000,
  graceMs: 1_000,
};

/** For the trainer that ships, on a machine that has other work. */
export const patientTimes = { ...quickTimes, stallMs: 60_000, idleMs: 60_000, startupMs: 120_000, graceMs: 60_000 };

export function dispatch(
  parts: Parts,
  change: Partial<DispatcherOptions> & { catalogue?: Catalogue; validate?: (run: Run) => Promise<unknown> } = {},
): Dispatcher {
  const { catalogue, validate, ...options } = change;
  return startDispatcher(
    {
      ...parts,
      catalogue: catalogue ?? oneModel(tinyModel),
      validate: validate ?? ((run) => accept(parts.store, run)),
    },
    {
      owner: thisOwner(),
      ownerIsDead,
      capacity: { maxConcurrent: 2, memoryBytes: 8e9 },
      numThreads: 1,
      checkpointSeconds: 60,
      layers: "auto",
      times: quickTimes,
      tickMs: 200,
      ...options,
    },
  );
}

export const hyperparameters: Hyperparameters = {
  num_train_epochs: 1,
  per_device_train_batch_size: 2,
  gradient_accumulation_steps: 1,
  learning_rate: 0.001,
  lr_scheduler_type: "linear",
  warmup_ratio: 0,
  weight_decay: 0,
  max_grad_norm: 1,
  label_smoothing_factor: 0,
  dropout: null,
  max_length: 64,
  lora_r: 4,
  lora_alpha: 8,
  lora_dropout: 0,
  target_modules: "all-linear",
  trainable_layers: 1,
  num_virtual_tokens: 20,
  early_stopping_patience: 0,
  eval_steps: 0,
  sampling: "shuffled",
  class_weights: "none",
  target_mean: 0,
  target_std: 1,
  beta: 0.1,
  distill_weight: 0.5,
  distill_temperature: 2,
};

/** Stores a processed file of `rows` (canonical JSON lines) and a queued run that reads it. */
export async function queueRun(
  parts: Pick<Parts, "store" | "home">,
  change: Partial<Run> = {},
  rows = "",
): Promise<Run> {
  const projectId = change.projectId ?? "proj_a";
  const fileId = ids.make("file-");
  mkdirSync(join(parts.home, "blobs", "files", fileId), { recursive: true });
  writeFileSync(join(parts.home, "blobs", "files", fileId, "rows.jsonl"), rows);
  await parts.store.files.create({
    id: fileId,
    projectId,
    filename: "train.jsonl",
    purpose: "fine-tune",
    bytes: 0,
    sha256: "0".repeat(64),
    status: "processed",
    statusDetails: null,
    createdAt: Date.now(),
    expiresAt: null,
    report: {
      format: "jsonl",
      kind: "chat",
      numRows: 20,
      numUsable: 20,
      numFaults: 0,
      faults: [],
      notices: [],
      labels: null,
      rowsSha256: createHash("sha256").update(rows).digest("hex"),
    },
    deletedAt: null,
  });
  const run: Run = {
    id: ids.make("ftjob-"),
    projectId,
    createdAt: Date.now(),
    status: "queued",
    wanted: null,
    model: "tiny",
    baseModel: "tiny",
    family: "decoder",
    trainingFile: fileId,
    validationFile: null,
    seed: 1,
    metadata: null,
    request: { suffix: "mine", task: null, method: null, hyperparameters: {}, integrations: null },
    task: "chat",
    method: "lora",
    hyperparameters,
    labels: null,
    estimate: null,
    attempt: 0,
    startedAt: null,
    finishedAt: null,
    step: 0,
    totalSteps: null,
    etaAt: null,
    trainedTokens: null,
    fineTunedModel: null,
    resultFile: null,
    error: null,
    waiting: null,
    ...change,
  };
  await parts.store.runs.create(run, []);
  return run;
}
