/**
 * A sweep: which trial is next, which are ended, and when it is over. Pure.
 *
 *   running -> succeeded | failed          cancelling -> cancelled
 *
 * Trial 0 has the automatic values. When it is known that its data can be used, configurations are tried until the
 * budget or the space ends; then the automatic and the best values are trained with other seeds, in pairs, for the
 * verdict. A plan is stored before its run is made, so a server may be killed at any line.
 *
 * A cross-validation is the same with nothing to search: trial n holds out fold n.
 */
import type { ErrorCode, Importance, Metric, Pruning, Search, Space, SweepStatus, TrialRole } from "@fettle/contract";
import type { Run, RunRequest } from "./job.js";
import { endedStatuses } from "./job.js";
import { type Point, reasonToPrune } from "./pruning.js";
import { dimensionsOf, gridValues, maxTrials, randomValues, sizeOf, type Values } from "./search-space.js";
import { type Budget, budgetMs, oneMoreMs, typicalMs, usedMs } from "./sweep-budget.js";

export interface Plan {
  number: number;
  role: TrialRole;
  values: Values;
  /** How the values came about. */
  chosen: string;
  seed: number;
  runId: string;
  /** Set when we ended it, before its run was asked to. */
  stopped: { why: "pruned" | "budget" | "cancelled" | "refused"; reason: string } | null;
}

export interface Sweep {
  id: string;
  projectId: string;
  createdAt: number;
  finishedAt: number | null;
  status: SweepStatus;
  model: string;
  trainingFile: string;
  validationFile: string | null;
  metadata: Record<string, string> | null;
  /** Of every trial. */
  request: RunRequest;
  /** Of the rows held out, the same in every trial, and of the search's trials. */
  seed: number;
  space: Space;
  search: Search;
  pruning: Pruning;
  budget: Budget;
  metric: Metric;
  parallel: number | null;
  repeats: number;
  /** Of a cross-validation; absent: a sweep. Its trials have the role "search" and no values. */
  folds?: number;
  plans: Plan[];
  /** Set when it succeeded. */
  importance: Importance | null;
  error: { code: ErrorCode; message: string; param: string | null } | null;
}

export interface Evaluation {
  step: number;
  at: number;
  loss: number;
  /** Whether the run would keep the model of this step. */
  best: boolean;
  metrics: Readonly<Record<string, number>>;
}

/** A plan with what became of it. `run` null: it is still to be made. */
export interface Trial {
  plan: Plan;
  run: Run | null;
  evaluations: readonly Evaluation[];
}

export type NewPlan = Omit<Plan, "runId" | "stopped">;

export type SweepAction =
  | { type: "plan"; plan: NewPlan }
  /** `otherwise`: what is planned when no suggestion comes. */
  | { type: "suggest"; otherwise: NewPlan }
  | { type: "create_run"; number: number }
  | { type: "stop"; number: number; why: NonNullable<Plan["stopped"]>["why"]; reason: string }
  | { type: "cancel_run"; number: number; reason: string }
  | { type: "end"; status: "succeeded" | "failed" | "cancelled"; error: Sweep["error"] };

export const hasEnded = (trial: Trial): boolean =>
  trial.run === null ? trial.plan.stopped !== null : endedStatuses.includes(trial.run.status);
const isWaiting = ({ run }: Trial): boolean => run?.status === "validating_files" || run?.status === "queued";
export const isSearched = ({ plan: { role } }: Trial): boolean => role === "automatic" || role === "search";

/** What is to be done now; nothing: wait for the runs. Each action is done at most once, whoever asks how often. */
export function nextActions(sweep: Sweep, trials: readonly Trial[], now: number): SweepAction[] {
  if (sweep.status !== "running" && sweep.status !== "cancelling") return [];
  const urgent = trials.flatMap(leftOver);
  if (urgent.length > 0) return urgent;
  const whole = sweep.folds === undefined ? "sweep" : "cross-validation";
  if (sweep.status === "cancelling") {
    const stops = stopAll(trials, "cancelled", `the ${whole} was cancelled`);
    return stops.length > 0 ? stops : trials.every(hasEnded) ? [end("cancelled")] : [];
  }
  const error = reasonToFail(sweep, trials);
  if (error !== null) {
    const stops = stopAll(trials, "cancelled", `the ${whole} failed`);
    return stops.length > 0 ? stops : trials.every(hasEnded) ? [end("failed", error)] : [];
  }
  const limit = budgetMs(sweep);
  if (limit !== null && usedMs(trials, now) >= limit) {
    const stops = stopAll(trials, "budget", `the budget of the ${whole} is spent`);
    return stops.length > 0 ? stops : trials.every(hasEnded) ? [finished(trials, sweep)] : [];
  }
  const pruned = prune(sweep, trials);
  if (pruned.length > 0) return pruned;
  return goOn(sweep, trials, now);
}

/** What a killed server had decided and not done. */
function leftOver({ plan, run }: Trial): SweepAction[] {
  const { number, stopped } = plan;
  if (run === null) return stopped === null ? [{ type: "create_run", number }] : [];
  if (stopped === null || endedStatuses.includes(run.status) || run.wanted === "cancel") return [];
  return [{ type: "cancel_run", number, reason: `${stopped.why}: ${stopped.reason}` }];
}

const stopAll = (trials: readonly Trial[], why: "budget" | "cancelled", reason: string): SweepAction[] =>
  trials
    .filter((trial) => !hasEnded(trial) && trial.plan.stopped === null)
    .map(({ plan: { number } }) => ({ type: "stop", number, why, reason }));

const end = (status: "succeeded" | "failed" | "cancelled", error: Sweep["error"] = null): SweepAction => ({
  type: "end",
  status,
  error,
});

/** What every further trial would meet too. */
function reasonToFail(sweep: Sweep, trials: readonly Trial[]): Sweep["error"] {
  const [first] = trials;
  if (first === undefined || first.run === null) return refusalOf(first);
  if (first.run.status === "failed" && first.run.hyperparameters === null) return first.run.error;
  if (sweep.folds !== undefined) return null;
  const { name } = sweep.metric;
  const [evaluated] = first.evaluations;
  if (evaluated !== undefined && metricAt(evaluated, name) === null) {
    const known = ["valid_loss", ...Object.keys(evaluated.metrics)].join(", ");
    const message = `The runs do not measure "${name}": expected one of ${known}. Start a sweep with one of these.`;
    return { code: "value_out_of_range", message, param: "metric.name" };
  }
  if (evaluated === undefined && first.run.status === "succeeded")
    return {
      code: "too_few_rows",
      message: "No row was held out to judge trials by. Give a validation file, or at least 10 rows.",
      param: "validation_file",
    };
  return null;
}

/** Of a trial whose run could not be made. */
const refusalOf = (trial: Trial | undefined): Sweep["error"] =>
  trial?.plan.stopped?.why === "refused"
    ? { code: "invalid_request", message: trial.plan.stopped.reason, param: null }
    : null;

export const metricAt = (evaluation: Evaluation, metric: string): number | null =>
  metric === "valid_loss" ? evaluation.loss : (evaluation.metrics[metric] ?? null);

/** Of the model the run keeps: at each evaluation the metric of the best so far by validation loss. */
export function pointsOf(sweep: Pick<Sweep, "metric">, { run, evaluations }: Trial): Point[] {
  const points: Point[] = [];
  let kept: number | null = null;
  for (const evaluation of evaluations) {
    if (evaluation.best) kept = metricAt(evaluation, sweep.metric.name);
    if (kept === null) continue;
    const epochs = run?.hyperparameters?.num_train_epochs ?? 1;
    const part = run?.totalSteps ? evaluation.step / run.totalSteps : 1;
    points.push({ epochs: epochs * part, at: evaluation.at, value: kept });
  }
  return points;
}

/** Of a trial that came to its end. */
export const scoreOf = (sweep: Pick<Sweep, "metric">, trial: Trial): number | null =>
  trial.run?.status === "succeeded" ? (pointsOf(sweep, trial).at(-1)?.value ?? null) : null;

export const gain = ({ metric }: Pick<Sweep, "metric">, from: number, to: number): number =>
  metric.direction === "minimize" ? from - to : to - from;

/** The best of the search; of equals the first. */
export function bestOf(sweep: Pick<Sweep, "metric">, trials: readonly Trial[]): { trial: Trial; score: number } | null {
  let best: { trial: Trial; score: number } | null = null;
  for (const trial of trials.filter(isSearched)) {
    const score = scoreOf(sweep, trial);
    if (score !== null && (best === null || gain(sweep, best.score, score) > 0)) best = { trial, score };
  }
  return best;
}

function prune(sweep: Sweep, trials: readonly Trial[]): SweepAction[] {
  if (sweep.pruning === "none") return [];
  const curves = trials
    .filter(isSearched)
    .map((trial) => ({ trial, curve: { number: trial.plan.number, points: pointsOf(sweep, trial) } }));
  return curves.flatMap(({ trial, curve }) => {
    if (trial.plan.role !== "search" || hasEnded(trial) || trial.plan.stopped !== null) return [];
    const reason = reasonToPrune({
      pruning: sweep.pruning,
      direction: sweep.metric.direction,
      curve,
      others: curves.filter((other) => other.trial !== trial).map((other) => other.curve),
      maxEpochs: trial.run?.hyperparameters?.num_train_epochs ?? 1,
    });
    return reason === null ? [] : [{ type: "stop", number: curve.number, why: "pruned", reason }];
  });
}

/** One new trial at a time, and none while another still waits for its turn: other runs of the project get theirs. */
function goOn(sweep: Sweep, trials: readonly Trial[], now: number): SweepAction[] {
  const atWork = trials.filter((trial) => !hasEnded(trial));
  const full = atWork.some(isWaiting) || (sweep.parallel !== null && atWork.length >= sweep.parallel);
  if (!searchIsOver(sweep, trials, now)) {
    if (full) return [];
    if (sweep.folds !== undefined) return foldPlan(sweep, trials);
    const next = trials.length === 0 ? automaticPlan(sweep) : nextPlan(sweep, trials);
    if (next !== null) return [next];
  }
  if (trials.some((trial) => isSearched(trial) && !hasEnded(trial))) return [];
  const repeat = nextRepeat(sweep, trials);
  if (repeat !== null) return full ? [] : [{ type: "plan", plan: repeat }];
  return atWork.length === 0 ? [finished(trials, sweep)] : [];
}

/** Trials the search is planned to have; null: as many as the time allows. */
export function plannedTrials(sweep: Pick<Sweep, "budget" | "space" | "search" | "folds">): number | null {
  if (sweep.folds !== undefined) return sweep.folds;
  const { trials, minutes, money } = sweep.budget;
  // Beside the combinations of the space stand the automatic values.
  const all = Math.min(maxTrials, sizeOf(sweep.space) ?? maxTrials) + 1;
  if (trials !== null) return Math.min(trials, all);
  if (sweep.search === "grid") return all;
  return minutes !== null || money !== null ? null : Math.min(defaultTrials, all);
}
const defaultTrials = 20;

/** Once a repeat is planned the search stays over. Of a budget in time, what the repeats will take is kept back, half of it at most. */
export function searchIsOver(sweep: Sweep, trials: readonly Trial[], now: number): boolean {
  if (trials.some((trial) => !isSearched(trial))) return true;
  if (trials.length >= (plannedTrials(sweep) ?? maxTrials)) return true;
  if (trials.length >= hopeless && trials.slice(-hopeless).every(couldNotBegin)) return true;
  const limit = budgetMs(sweep);
  const typical = typicalMs(trials);
  if (limit === null || typical === null) return false;
  const kept = Math.min(2 * sweep.repeats * typical, limit / 2);
  return usedMs(trials, now) + oneMoreMs(trials, typical, now) > limit - kept;
}

/** So many in a row: what refuses them is not in their values. They take no time, so a budget in minutes never ends. */
const hopeless = 10;
const couldNotBegin = ({ plan, run }: Trial): boolean =>
  run === null ? plan.stopped?.why === "refused" : run.status === "failed" && run.hyperparameters === null;

const automaticPlan = ({ seed }: Sweep): SweepAction => ({
  type: "plan",
  plan: { number: 0, role: "automatic", values: {}, chosen: "by Fettle, for what is not given", seed },
});

/** The others wait until the first has read all rows: what it has tokenised is then there for them. */
function foldPlan({ folds = 0, seed }: Sweep, trials: readonly Trial[]): SweepAction[] {
  const [first] = trials;
  if (first !== undefined && !hasEnded(first) && first.run?.totalSteps == null) return [];
  const chosen = `fold ${trials.length + 1} of ${folds} is held out`;
  return [{ type: "plan", plan: { number: trials.length, role: "search", values: {}, chosen, seed } }];
}

/** So many trials show the estimator what there is. */
const startupTrials = 6;

/** Null: the space has no more. */
function nextPlan(sweep: Sweep, trials: readonly Trial[]): SweepAction | null {
  const { space, seed, search } = sweep;
  const number = trials.length;
  const facts = { number, role: "search", seed } as const;
  if (search === "grid") {
    const values = gridValues(space, { index: number - 1, seed });
    const chosen = `combination ${number} of ${sizeOf(space)} of the grid, in an order shuffled by the seed`;
    return values === null ? null : { type: "plan", plan: { ...facts, values, chosen } };
  }
  const tried = trials.slice(1).map(({ plan }) => plan.values);
  const values = randomValues(space, { number, seed, tried });
  if (values === null) return null;
  if (search === "random") return { type: "plan", plan: { ...facts, values, chosen: "at random, by the seed" } };
  const known = trials.filter((trial) => isSearched(trial) && pointsOf(sweep, trial).length > 0).length;
  const chosen = `at random, by the seed: ${known} trials have scored, and the estimator begins with ${startupTrials}`;
  const plan = { ...facts, values, chosen };
  return known < startupTrials ? { type: "plan", plan } : { type: "suggest", otherwise: plan };
}

export const repeatsLeft = ({ repeats }: Pick<Sweep, "repeats">, trials: readonly Trial[]): number =>
  Math.max(0, 2 * repeats - trials.filter((trial) => !isSearched(trial)).length);

/** Pairs of the automatic and the best values with one seed each; none when the automatic values are the best. */
function nextRepeat(sweep: Sweep, trials: readonly Trial[]): NewPlan | null {
  const best = bestOf(sweep, trials);
  if (best === null || best.trial.plan.role === "automatic" || repeatsLeft(sweep, trials) === 0) return null;
  const done = trials.filter((trial) => !isSearched(trial)).length;
  const seed = (sweep.seed + 1 + Math.floor(done / 2)) % 2147483648;
  const role = done % 2 === 0 ? "repeat_automatic" : "repeat_best";
  const [values, whose] =
    role === "repeat_best" ? [best.trial.plan.values, `as trial ${best.trial.plan.number}`] : [{}, "as trial 0"];
  return { number: trials.length, role, values, chosen: `${whose}, with a seed the search has not used`, seed };
}

/** Without one trial that came to its end there is no result; of folds it takes two to show a spread. */
function finished(trials: readonly Trial[], sweep: Sweep): SweepAction {
  const scored = trials.filter((trial) => isSearched(trial) && scoreOf(sweep, trial) !== null).length;
  if (scored >= (sweep.folds === undefined ? 1 : 2)) return end("succeeded");
  const failed = trials.find((trial) => trial.run?.error != null)?.run?.error;
  const refused = refusalOf(trials.find(({ plan }) => plan.stopped?.why === "refused"));
  return end(
    "failed",
    failed ??
      refused ?? {
        code: "training_failed",
        message:
          sweep.folds === undefined
            ? "No trial of the sweep came to its end within the budget. Give it more, or a smaller model."
            : `${scored} of ${sweep.folds} folds came to a score, and an average needs two. Give it more time, or a smaller model.`,
        param: "budget",
      },
  );
}

/** Where a dimension's value of a trial lies; of values left to Fettle, what was chosen. */
export function valuesOfTrial(sweep: Pick<Sweep, "space">, { plan, run }: Trial): Values {
  const values: Values = {};
  for (const [name] of dimensionsOf(sweep.space)) {
    const own = plan.values[name];
    const resolved = name === "learning_rate_multiplier" ? 1 : run?.hyperparameters?.[name];
    const value = own === undefined ? resolved : own;
    if (value !== undefined) values[name] = value;
  }
  return values;
}
