/** Sweeps and their trials as our own API shows them. */
import type { SweepObject, TrialObject, TrialStatus } from "@fettle/contract";
import type { SweepView } from "../../app/sweeps.js";
import type { RunStatus } from "../../domain/job.js";
import { dimensionsOf } from "../../domain/search-space.js";
import { type Budget, leftMs, usedMs } from "../../domain/sweep-budget.js";
import {
  bestOf,
  hasEnded,
  isSearched,
  plannedTrials,
  pointsOf,
  repeatsLeft,
  scoreOf,
  searchIsOver,
  type Sweep,
  type Trial,
  valuesOfTrial,
} from "../../domain/sweep.js";
import { verdictOf } from "../../domain/sweep-verdict.js";
import { toSeconds, toSecondsOrNull } from "../openai/present.js";

export function sweepObject({ sweep, trials }: SweepView, now: number): SweepObject {
  const used = usedMs(trials, now);
  const automatic = trials[0] === undefined ? null : scoreOf(sweep, trials[0]);
  return {
    id: sweep.id,
    object: "sweep",
    created_at: toSeconds(sweep.createdAt),
    finished_at: toSecondsOrNull(sweep.finishedAt),
    status: sweep.status,
    model: sweep.model,
    teacher: sweep.request.teacher ?? null,
    training_file: sweep.trainingFile,
    validation_file: sweep.validationFile,
    hyperparameters: sweep.request.hyperparameters,
    space: sweep.space,
    search: sweep.search,
    pruning: sweep.pruning,
    budget: budgetObject(sweep.budget),
    metric: sweep.metric,
    parallel: sweep.parallel,
    repeats: sweep.repeats,
    seed: sweep.seed,
    metadata: sweep.metadata,
    phase: phaseOf(sweep, trials, now),
    trials: {
      planned: plannedTrials(sweep),
      started: trials.length,
      succeeded: trials.filter(({ run }) => run?.status === "succeeded").length,
      pruned: trials.filter((trial) => statusOf(trial) === "pruned").length,
      failed: trials.filter((trial) => statusOf(trial) === "failed").length,
    },
    minutes_used: used / 60_000,
    money_used: moneyUsed(sweep, used),
    seconds_left: secondsLeft(sweep, trials, now),
    automatic: automatic === null ? null : { trial: 0, score: automatic },
    best: bestObject(sweep, trials),
    verdict: sweep.status === "succeeded" ? verdictOf(sweep, trials) : null,
    importance: sweep.importance,
    parallel_coordinates: coordinates(sweep, trials),
    error: sweep.error,
  };
}

export const moneyUsed = ({ budget: { pricePerHour } }: Sweep, used: number): number | null =>
  pricePerHour === 0 ? null : (used / 3_600_000) * pricePerHour;

const isRunning = ({ status }: Sweep): boolean => status === "running" || status === "cancelling";

function phaseOf(sweep: Sweep, trials: readonly Trial[], now: number): SweepObject["phase"] {
  if (!isRunning(sweep)) return "ended";
  const searching = trials.some((trial) => isSearched(trial) && !hasEnded(trial));
  return searching || !searchIsOver(sweep, trials, now) ? "search" : "verdict";
}

export function secondsLeft(sweep: Sweep, trials: readonly Trial[], now: number): number | null {
  if (!isRunning(sweep)) return 0;
  const planned = plannedTrials(sweep);
  const unplanned = planned === null ? null : Math.max(0, planned - trials.filter(isSearched).length);
  const left = leftMs({ sweep, trials, unplanned, repeats: repeatsLeft(sweep, trials), now });
  return left === null ? null : Math.round(left / 1000);
}

export const budgetObject = ({ trials, minutes, money }: Budget): SweepObject["budget"] => ({
  ...(trials !== null && { trials }),
  ...(minutes !== null && { minutes }),
  ...(money !== null && { money }),
});

function bestObject(sweep: Sweep, trials: readonly Trial[]): SweepObject["best"] {
  const best = bestOf(sweep, trials);
  if (best === null) return null;
  const { trial, score } = best;
  return {
    trial: trial.plan.number,
    run_id: trial.plan.runId,
    score,
    values: valuesOfTrial(sweep, trial),
    hyperparameters: trial.run?.hyperparameters ?? null,
    fine_tuned_model: trial.run?.fineTunedModel ?? null,
  };
}

function coordinates(sweep: Sweep, trials: readonly Trial[]): SweepObject["parallel_coordinates"] {
  const dimensions = dimensionsOf(sweep.space);
  const lines = trials.filter(isSearched).flatMap((trial) => {
    const [score, values] = [scoreOf(sweep, trial), valuesOfTrial(sweep, trial)];
    return score === null
      ? []
      : [{ trial: trial.plan.number, values: dimensions.map(([name]) => values[name] ?? null), score }];
  });
  const axes = dimensions.map(([name, dimension], place) => {
    if (!("values" in dimension))
      return { name, log: dimension.log, range: rangeOf(lines, place, dimension), values: null };
    // The automatic values may lie outside of what is listed.
    const values = [...new Set([...dimension.values, ...lines.map((line) => line.values[place] ?? null)])];
    return { name, log: false, range: null, values };
  });
  return { axes, lines };
}

/** With the automatic values, which may lie outside. */
function rangeOf(
  lines: readonly { values: readonly unknown[] }[],
  place: number,
  { min, max }: { min: number; max: number },
): [number, number] {
  const seen = lines.map((line) => line.values[place]).filter((value): value is number => typeof value === "number");
  return [Math.min(min, ...seen), Math.max(max, ...seen)];
}

export function trialObject(sweep: Sweep, trial: Trial, now: number): TrialObject {
  const { plan, run } = trial;
  const last = pointsOf(sweep, trial).at(-1);
  return {
    number: plan.number,
    object: "sweep.trial",
    role: plan.role,
    status: statusOf(trial),
    reason: reasonOf(trial),
    run_id: plan.runId,
    seed: plan.seed,
    values: valuesOfTrial(sweep, trial),
    chosen: plan.chosen,
    score: last?.value ?? null,
    epochs: last?.epochs ?? 0,
    seconds: secondsOf(trial, now),
    fine_tuned_model: run?.fineTunedModel ?? null,
  };
}

/** One that came to its end before it was stopped has none. */
export function reasonOf({ plan: { stopped }, run }: Trial): string | null {
  if (run?.status === "succeeded") return null;
  return stopped === null ? (run?.error?.message ?? null) : `${stopped.why}: ${stopped.reason}`;
}

export const secondsOf = ({ run }: Trial, now: number): number | null =>
  run?.startedAt == null ? null : ((run.finishedAt ?? now) - run.startedAt) / 1000;

const statuses: Record<RunStatus, TrialStatus> = {
  validating_files: "waiting",
  queued: "waiting",
  running: "running",
  paused: "paused",
  succeeded: "succeeded",
  failed: "failed",
  cancelled: "cancelled",
};

export function statusOf({ plan: { stopped }, run }: Trial): TrialStatus {
  if (run === null) return stopped === null ? "waiting" : stopped.why === "refused" ? "failed" : "cancelled";
  if (run.status === "cancelled" && stopped?.why === "pruned") return "pruned";
  return statuses[run.status];
}
