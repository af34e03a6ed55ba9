/** Valid records for tests; each call gives fresh ids. */
import { randomBytes } from "node:crypto";
import type { FileRecord, NewRunEvent, Store } from "../../src/app/ports.js";
import type { Run } from "../../src/domain/job.js";
import type { Sweep } from "../../src/domain/sweep.js";

export const freshId = (prefix: string): string => `${prefix}${randomBytes(12).toString("hex")}`;

export function sampleFile(change: Partial<FileRecord> = {}): FileRecord {
  return {
    id: freshId("file-"),
    projectId: "proj_a",
    filename: "train.jsonl",
    purpose: "fine-tune",
    bytes: 120,
    sha256: "0".repeat(64),
    status: "processed",
    statusDetails: null,
    createdAt: 1_700_000_000,
    expiresAt: null,
    report: null,
    deletedAt: null,
    ...change,
  };
}

export function sampleRun(change: Partial<Run> = {}): Run {
  return {
    id: freshId("ftjob-"),
    projectId: "proj_a",
    createdAt: 1_700_000_000,
    status: "queued",
    wanted: null,
    model: "tiny",
    baseModel: "tiny",
    family: "decoder",
    trainingFile: "file-missing",
    validationFile: null,
    seed: 1,
    metadata: null,
    request: { suffix: null, task: null, method: null, hyperparameters: {}, integrations: null },
    task: "chat",
    method: "lora",
    hyperparameters: null,
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
}

export function sampleSweep(change: Partial<Sweep> = {}): Sweep {
  return {
    id: freshId("sweep-"),
    projectId: "proj_a",
    createdAt: 1_700_000_000,
    finishedAt: null,
    status: "running",
    model: "tiny",
    trainingFile: "file-missing",
    validationFile: null,
    metadata: null,
    request: { suffix: null, task: null, method: null, hyperparameters: {}, integrations: null },
    seed: 7,
    space: { learning_rate: { min: 1e-5, max: 1e-1, log: true } },
    search: "random",
    pruning: "none",
    budget: { trials: 6, minutes: null, money: null, pricePerHour: 0 },
    metric: { name: "valid_loss", direction: "minimize" },
    parallel: null,
    repeats: 2,
    plans: [],
    importance: null,
    error: null,
    ...change,
  };
}

export function sampleEvent(key: string, change: Partial<NewRunEvent> = {}): NewRunEvent {
  return {
    id: freshId("ftevent-"),
    key,
    createdAt: 1_700_000_000,
    level: "info",
    type: "message",
    message: key,
    data: null,
    ...change,
  };
}

/** A stored run with a stored file. */
export async function storedRun(store: Store, change: Partial<Run> = {}): Promise<Run> {
  const projectId = change.projectId ?? "proj_a";
  const file = sampleFile({ projectId });
  await store.files.create(file);
  const run = sampleRun({ trainingFile: file.id, ...change });
  await store.runs.create(run, [sampleEvent("created")]);
  return run;
}

/** Polls until `probe` gives something, or fails after `ms`. */
export async function eventually<T>(
  what: string,
  probe: () => Promise<T | null | undefined | false> | T | null | undefined | false,
  ms = 10_000,
): Promise<T> {
  const until = Date.now() + ms;
  for (;;) {
    const found = await probe();
    if (found !== null && found !== undefined && found !== false) return found;
    if (Date.now() > until) throw new Error(`Not within ${ms} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
