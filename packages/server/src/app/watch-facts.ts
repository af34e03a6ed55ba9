/** What a run's events file says so far. Folding the same event twice changes nothing. */
import type { TrainerEvent } from "@fettle/contract";
import type { UsedMemory } from "../domain/job.js";

type Event<T extends TrainerEvent["type"]> = Extract<TrainerEvent, { type: T }>;

export interface Facts {
  /** The attempt of the newest event; the last four fields speak of it alone. */
  attempt: number;
  totalSteps: number | null;
  /** What the newest attempt that told of it said. */
  memory: UsedMemory | null;
  steps: Map<number, Event<"step">>;
  evaluations: Map<number, Event<"evaluation">>;
  checkpointSteps: Set<number>;
  checkpointed: boolean;
  stopped: Event<"stopped"> | null;
  finished: Event<"finished"> | null;
  verified: Event<"verified"> | null;
  failed: Event<"failed"> | null;
}

export function noFacts(): Facts {
  return {
    attempt: 0,
    totalSteps: null,
    memory: null,
    steps: new Map(),
    evaluations: new Map(),
    checkpointSteps: new Set(),
    checkpointed: false,
    stopped: null,
    finished: null,
    verified: null,
    failed: null,
  };
}

export function foldFacts(facts: Facts, events: readonly TrainerEvent[]): void {
  for (const event of events) foldOne(facts, event);
}

function foldOne(facts: Facts, event: TrainerEvent): void {
  if (event.attempt > facts.attempt) {
    Object.assign(facts, {
      attempt: event.attempt,
      checkpointed: false,
      stopped: null,
      finished: null,
      verified: null,
      failed: null,
    });
  }
  switch (event.type) {
    case "data":
      facts.totalSteps = event.total_steps;
      if (event.memory) facts.memory = { predicted: event.memory, peakBytes: null };
      break;
    case "step":
      facts.steps.set(event.step, event);
      break;
    case "evaluation":
      facts.evaluations.set(event.step, event);
      break;
    case "checkpoint":
      facts.checkpointSteps.add(event.step);
      facts.checkpointed = true;
      break;
    case "stopped":
      facts.stopped = event;
      break;
    case "finished":
      facts.finished = event;
      facts.memory = { predicted: facts.memory?.predicted ?? null, peakBytes: event.peak_rss_bytes };
      break;
    case "verified":
      facts.verified = event;
      break;
    case "failed":
      facts.failed = event;
      break;
    default:
  }
}

/** The figures a checkpoint at `step` is shown with, under OpenAI's names: the newest at or before it. */
export function metricsAt(facts: Facts, step: number): Record<string, number> {
  const train = newestUpTo(facts.steps, step);
  const valid = newestUpTo(facts.evaluations, step);
  return {
    step,
    ...(train === null
      ? {}
      : { train_loss: train.train_loss, train_mean_token_accuracy: train.train_mean_token_accuracy }),
    ...(valid === null
      ? {}
      : {
          valid_loss: valid.valid_loss,
          valid_mean_token_accuracy: valid.valid_mean_token_accuracy,
          full_valid_loss: valid.valid_loss,
          full_valid_mean_token_accuracy: valid.valid_mean_token_accuracy,
        }),
  };
}

function newestUpTo<T>(byStep: Map<number, T>, step: number): T | null {
  let found = -1;
  for (const key of byStep.keys()) if (key <= step && key > found) found = key;
  return byStep.get(found) ?? null;
}
