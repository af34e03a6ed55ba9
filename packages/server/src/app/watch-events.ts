/** Trainer events in the words of a run's event log, as OpenAI's clients know them. */
import type { TrainerEvent } from "@fettle/contract";
import { gigabytes } from "../domain/estimate.js";
import { predictedBytes, type Run } from "../domain/job.js";
import type { CheckpointRecord, Ids, NewRunEvent } from "./ports.js";
import { type Facts, metricsAt } from "./watch-facts.js";

export interface Translated {
  events: NewRunEvent[];
  checkpoints: CheckpointRecord[];
  /** From the newest step among the events. */
  progress: { step: number; etaAt: number | null } | null;
}

type Words = Pick<NewRunEvent, "key" | "message"> & Partial<Pick<NewRunEvent, "level" | "type" | "data">>;

/** `facts` already hold `events`. Keys are the same however often an event is read: see `NewRunEvent`. */
export function translateEvents(
  ids: Ids,
  run: Run,
  input: { facts: Facts; events: readonly TrainerEvent[] },
): Translated {
  const translated: Translated = { events: [], checkpoints: [], progress: null };
  for (const event of input.events) {
    const createdAt = Math.round(event.time * 1000);
    const words = wordsFor(event, input.facts);
    if (words !== null) translated.events.push(runEvent(ids, createdAt, words));
    if (event.type === "step") {
      translated.progress = {
        step: event.step,
        etaAt: event.eta_seconds === null ? null : createdAt + Math.round(event.eta_seconds * 1000),
      };
    }
    if (event.type === "checkpoint") {
      translated.checkpoints.push({
        id: ids.make("ftckpt_"),
        runId: run.id,
        step: event.step,
        modelName: `${tunedModelName(run)}:ckpt-step-${event.step}`,
        path: event.path,
        metrics: metricsAt(input.facts, event.step),
        createdAt,
      });
    }
  }
  return translated;
}

export function runEvent(ids: Ids, createdAt: number, words: Words): NewRunEvent {
  return { id: ids.make("ftevent-"), createdAt, level: "info", type: "message", data: null, ...words };
}

/** `ft:<base>:<project>:<suffix or empty>:<8 characters>`. The last part is the run's own, so that it is the same after any crash. */
export function tunedModelName(run: Run): string {
  return `ft:${run.baseModel}:${run.projectId}:${run.request.suffix ?? ""}:${run.id.slice(-8)}`;
}

/** Null: told elsewhere (heartbeats as liveness, ends as the run's own state). */
function wordsFor(event: TrainerEvent, facts: Facts): Words | null {
  switch (event.type) {
    case "started":
      return {
        key: `started:${event.attempt}`,
        message:
          event.resumed_from_step === null
            ? "Fine-tuning job started"
            : `Fine-tuning job goes on from the checkpoint at step ${event.resumed_from_step}`,
      };
    case "log": {
      const key = event.seq > 0 ? `seq:${event.seq}` : `byte:${String(event.data?.byte)}`;
      return {
        key,
        level: event.level,
        message: event.message,
        ...(event.data === undefined ? {} : { data: event.data }),
      };
    }
    case "data":
      return dataWords(event);
    case "step":
      return stepWords(event, facts.totalSteps);
    case "evaluation":
      return evaluationWords(event, facts.totalSteps);
    case "checkpoint":
      return {
        key: `checkpoint:${event.step}`,
        message: `Checkpoint created at step ${event.step}`,
        data: { step: event.step, sha256: event.sha256, seconds: event.seconds },
      };
    case "finished": {
      const { seq: _, attempt, time: __, type: ___, artefact_path: ____, ...data } = event;
      const early = event.early_stopped ? ` early: validation stopped improving after step ${event.best_step}` : "";
      return {
        key: `finished:${attempt}`,
        message: `Training ended at step ${event.step}${early}; the saved model is being verified. ${memoryWords(event.peak_rss_bytes, facts)}`,
        data,
      };
    }
    case "verified":
      return {
        key: `verified:${event.attempt}`,
        message: "The saved model was loaded in a fresh process and answers as the trained one",
        data: { max_abs_diff: event.max_abs_diff },
      };
    case "heartbeat":
    case "stopped":
    case "failed":
      return null;
  }
}

function memoryWords(peakBytes: number, { memory }: Facts): string {
  const expected = memory === null ? null : predictedBytes({ memory });
  const told = expected === null ? "" : `; ${gigabytes(expected, 2)} were expected`;
  return `It held ${gigabytes(peakBytes, 2)} of memory at the peak${told}`;
}

function dataWords(event: Extract<TrainerEvent, { type: "data" }>): Words {
  const {
    num_train_rows,
    num_validation_rows,
    num_train_tokens,
    num_label_tokens,
    num_truncated,
    num_refused,
    total_steps,
    refused,
    memory,
  } = event;
  const faults =
    num_refused > 0 || num_truncated > 0 ? `; ${num_refused} rows refused, ${num_truncated} truncated` : "";
  return {
    key: "data",
    level: faults === "" ? "info" : "warn",
    message: `${num_train_rows} rows to train on (${num_train_tokens} tokens), ${num_validation_rows} held out for validation, ${total_steps} steps${faults}`,
    data: {
      num_train_rows,
      num_validation_rows,
      num_train_tokens,
      num_label_tokens,
      num_truncated,
      num_refused,
      total_steps,
      refused: refused.slice(0, 100),
      ...(memory ? { memory } : {}),
    },
  };
}

const of = (step: number, totalSteps: number | null): string =>
  totalSteps === null ? `Step ${step}` : `Step ${step}/${totalSteps}`;
const figure = (value: number): string => String(Number(value.toPrecision(4)));

function stepWords(event: Extract<TrainerEvent, { type: "step" }>, totalSteps: number | null): Words {
  const { seq: _, attempt: __, time: ___, type: ____, ...data } = event;
  return {
    key: `step:${event.step}`,
    type: "metrics",
    message: `${of(event.step, totalSteps)}: training loss=${figure(event.train_loss)}`,
    data: { ...data, total_steps: totalSteps },
  };
}

function evaluationWords(event: Extract<TrainerEvent, { type: "evaluation" }>, totalSteps: number | null): Words {
  const best = event.best ? " (best so far)" : "";
  return {
    key: `evaluation:${event.step}`,
    type: "metrics",
    message: `${of(event.step, totalSteps)}: full validation loss=${figure(event.valid_loss)}${best}`,
    data: {
      step: event.step,
      total_steps: totalSteps,
      full_valid_loss: event.valid_loss,
      full_valid_mean_token_accuracy: event.valid_mean_token_accuracy,
      valid_loss: event.valid_loss,
      valid_mean_token_accuracy: event.valid_mean_token_accuracy,
      best: event.best,
      ...event.metrics,
    },
  };
}
