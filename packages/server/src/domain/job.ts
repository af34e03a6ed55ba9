/**
 * A run and how its state changes. Pure.
 *
 *   validating_files -> queued -> running -> succeeded
 *                         ^         |  \--> failed
 *                         |         v
 *                         +----- paused          cancelled from any state that has not ended
 *
 * `queued` is also where a run waits after a crash of its trainer, with `attempt` counted up, until the
 * dispatcher starts the next one from the last checkpoint. A request to pause or cancel a running run first
 * sets `wanted`; the trainer writes a checkpoint and ends; its end makes the new state true.
 */
import type { ErrorCode, Family, Hyperparameters, MemoryParts, Method, Task } from "@fettle/contract";

export type RunStatus = "validating_files" | "queued" | "running" | "paused" | "succeeded" | "failed" | "cancelled";
export const endedStatuses: readonly RunStatus[] = ["succeeded", "failed", "cancelled"];

/** What the user asked for, before anything was resolved. "auto" is undefined here. */
export interface RunRequest {
  suffix: string | null;
  task: Task | null;
  method: Method | null;
  /** Name of the model that it learns from beside its labels; absent: of none. */
  teacher?: string;
  hyperparameters: Partial<Hyperparameters> & { learning_rate_multiplier?: number };
  integrations: unknown[] | null;
}

/** Given by what compares runs: those with the same split are judged by the same rows. */
export interface Split {
  seed: number;
  /** Of a cross-validation; absent: a tenth is held out. */
  fold?: Fold;
}

/** Held out is fold `number` (from 0) of so many, which together are all rows. */
export interface Fold {
  number: number;
  of: number;
}

export interface Estimate {
  seconds: [least: number, most: number];
  memoryBytes: number;
  tokens: number;
  /** What the seconds rest on, in words; absent in runs of earlier versions, as `machine` is. */
  basis?: string;
  /** The machine it was made for. */
  machine?: string;
}

/** What the newest trainer expected to hold at its peak, and what it held; null: not told. */
export interface UsedMemory {
  predicted: MemoryParts | null;
  peakBytes: number | null;
}

export interface Run {
  id: string;
  projectId: string;
  createdAt: number;
  status: RunStatus;
  /** Set while the trainer is asked to end for this reason. */
  wanted: "pause" | "cancel" | null;
  /** Name as asked for: a base model, `ft:…`, or a checkpoint of one. */
  model: string;
  baseModel: string;
  family: Family;
  trainingFile: string;
  validationFile: string | null;
  seed: number;
  /** Which rows are held out; absent: as the run's own seed says. */
  split?: Split;
  metadata: Record<string, string> | null;
  request: RunRequest;
  /** Resolved when the run leaves `validating_files`. */
  task: Task | null;
  method: Method | null;
  hyperparameters: Hyperparameters | null;
  labels: string[] | null;
  estimate: Estimate | null;
  /** Trainer processes started so far. */
  attempt: number;
  /** Trainers that died in a row without a new checkpoint between them; absent is 0. */
  deaths?: number;
  startedAt: number | null;
  finishedAt: number | null;
  step: number;
  totalSteps: number | null;
  etaAt: number | null;
  trainedTokens: number | null;
  /** Absent until a trainer told of it. */
  memory?: UsedMemory;
  /** Spent in optimiser steps, of all attempts; absent until the run has succeeded. */
  trainSeconds?: number;
  fineTunedModel: string | null;
  resultFile: string | null;
  error: { code: ErrorCode; message: string; param: string | null } | null;
  /** Why a queued or paused run waits, in words. */
  waiting: string | null;
}

export interface RunEvent {
  id: string;
  runId: string;
  seq: number;
  createdAt: number;
  level: "info" | "warn" | "error";
  type: "message" | "metrics";
  message: string;
  data: Record<string, unknown> | null;
}

/** So many trainers may die in a row without a new checkpoint; then the run fails. */
export const maxAttempts = 4;

export type RunAction =
  | {
      type: "validated";
      task: Task;
      method: Method;
      hyperparameters: Hyperparameters;
      labels: string[] | null;
      estimate: Run["estimate"];
    }
  | { type: "refused"; error: NonNullable<Run["error"]>; at: number }
  | { type: "waits"; reason: string }
  | { type: "started"; at: number }
  | { type: "progressed"; step: number; totalSteps: number | null; etaAt: number | null; memory?: UsedMemory }
  | { type: "pause_requested" }
  | { type: "cancel_requested"; at: number }
  | { type: "resume_requested" }
  | { type: "trainer_stopped"; reason: "signal" | "disk_full"; at: number }
  /** `progressed`: it had written a checkpoint of its own. */
  /** `progressed`: it had written a checkpoint of its own before. */
  | { type: "trainer_died"; error: NonNullable<Run["error"]>; canRetry: boolean; progressed: boolean; at: number }
  | {
      type: "succeeded";
      fineTunedModel: string;
      resultFile: string | null;
      trainedTokens: number;
      trainSeconds: number;
      at: number;
    };

export type Transition = { ok: true; run: Run } | { ok: false; reason: string };

const ended = (run: Run): boolean => endedStatuses.includes(run.status);
const to = (run: Run, change: Partial<Run>): Transition => ({ ok: true, run: { ...run, ...change } });
const refuse = (run: Run, verb: string, when: string): Transition => ({
  ok: false,
  reason: `Run ${run.id} is ${run.status}: only a run that is ${when} can be ${verb}.`,
});

type Of<T extends RunAction["type"]> = Extract<RunAction, { type: T }>;

/** What its newest trainer expected to hold at the peak; null before it has seen the rows. */
export function predictedBytes({ memory }: Pick<Run, "memory">): number | null {
  if (!memory?.predicted) return null;
  return Object.values(memory.predicted).reduce((sum, bytes) => sum + bytes, 0);
}

/** The only function that changes a run. A refusal is a value with its reason. */
export function transition(run: Run, action: RunAction): Transition {
  switch (action.type) {
    case "validated":
    case "refused":
      return validation(run, action);
    case "waits":
      if (run.status !== "queued") return refuse(run, "told to wait", "queued");
      return to(run, { waiting: action.reason });
    case "started":
      if (run.status !== "queued") return refuse(run, "started", "queued");
      return to(run, {
        status: "running",
        attempt: run.attempt + 1,
        startedAt: run.startedAt ?? action.at,
        waiting: null,
      });
    case "pause_requested":
    case "cancel_requested":
    case "resume_requested":
      return request(run, action);
    case "progressed":
    case "trainer_stopped":
    case "trainer_died":
    case "succeeded":
      return training(run, action);
  }
}

function validation(run: Run, action: Of<"validated" | "refused">): Transition {
  if (action.type === "validated") {
    if (run.status !== "validating_files") return refuse(run, "validated", "validating_files");
    const { task, method, hyperparameters, labels, estimate } = action;
    return to(run, { status: "queued", task, method, hyperparameters, labels, estimate });
  }
  if (ended(run)) return refuse(run, "refused", "not ended");
  return to(run, {
    status: "failed",
    error: action.error,
    finishedAt: action.at,
    wanted: null,
    waiting: null,
    etaAt: null,
  });
}

function request(run: Run, action: Of<"pause_requested" | "cancel_requested" | "resume_requested">): Transition {
  if (action.type === "pause_requested") {
    if (run.status === "queued") return to(run, pausedByRequest);
    if (run.status !== "running") return refuse(run, "paused", "queued or running");
    return to(run, { wanted: run.wanted ?? "pause" });
  }
  if (action.type === "resume_requested") {
    if (run.status !== "paused") return refuse(run, "resumed", "paused");
    return to(run, { status: "queued", waiting: null, wanted: null });
  }
  if (ended(run)) return refuse(run, "cancelled", "not ended");
  if (run.status === "running") return to(run, { wanted: "cancel" });
  return to(run, { status: "cancelled", finishedAt: action.at, waiting: null, wanted: null });
}

function training(run: Run, action: Of<"progressed" | "trainer_stopped" | "trainer_died" | "succeeded">): Transition {
  const verb = { progressed: "advanced", trainer_stopped: "stopped", trainer_died: "restarted", succeeded: "finished" };
  if (run.status !== "running") return refuse(run, verb[action.type], "running");
  switch (action.type) {
    case "progressed":
      return to(run, {
        step: Math.max(run.step, action.step),
        totalSteps: action.totalSteps ?? run.totalSteps,
        etaAt: action.etaAt,
        ...(action.memory === undefined ? {} : { memory: action.memory }),
      });
    case "trainer_stopped":
    case "trainer_died":
      return trainerGone(run, action);
    case "succeeded": {
      const { fineTunedModel, resultFile, trainedTokens, trainSeconds, at } = action;
      return to(run, {
        status: "succeeded",
        wanted: null,
        fineTunedModel,
        resultFile,
        trainedTokens,
        trainSeconds,
        finishedAt: at,
        etaAt: null,
      });
    }
  }
}

const pausedByRequest = {
  status: "paused",
  wanted: null,
  etaAt: null,
  deaths: 0,
  waiting: "Paused by request.",
} as const satisfies Partial<Run>;

/** What the user wants decides first; a cancel beats everything. */
function trainerGone(run: Run, action: Of<"trainer_stopped" | "trainer_died">): Transition {
  if (run.wanted === "cancel")
    return to(run, { status: "cancelled", finishedAt: action.at, wanted: null, etaAt: null });
  if (action.type === "trainer_stopped" && action.reason === "disk_full") {
    const waiting = "The disk is full; the last checkpoint is whole. Free space, then resume.";
    return to(run, { ...pausedByRequest, waiting });
  }
  if (run.wanted === "pause") return to(run, pausedByRequest);
  if (action.type === "trainer_stopped") return to(run, { status: "queued", etaAt: null, deaths: 0 });
  const deaths = (action.progressed ? 0 : (run.deaths ?? 0)) + 1;
  if (action.canRetry && deaths < maxAttempts) return to(run, { status: "queued", etaAt: null, deaths });
  return to(run, { status: "failed", error: action.error, finishedAt: action.at, wanted: null, etaAt: null, deaths });
}
