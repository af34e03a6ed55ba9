/**
 * Carries out what domain/sweep.ts says is next, for every sweep that has not ended. It keeps nothing that the store
 * does not say, so it may be killed at any line; of two servers that do it at once, one finds the other's work done.
 */
import type { Hyperparameters, Importance } from "@fettle/contract";
import { AppError } from "../domain/error.js";
import { transition } from "../domain/job.js";
import { keyOf } from "../domain/search-space.js";
import { type NewPlan, nextActions, type Plan, type Sweep, type SweepAction } from "../domain/sweep.js";
import { questionOf } from "../domain/sweep-question.js";
import type { AppDeps } from "./deps.js";
import { createRun, event, type RunDeps } from "./jobs.js";
import type { Tuner } from "./ports.js";
import { type SweepView, withTrials } from "./sweeps.js";

type SweeperDeps = RunDeps & Pick<AppDeps, "log"> & { tuner: Tuner };

export interface Sweeper {
  /** Resolves when nothing of it is at work; the runs go on. */
  close(): Promise<void>;
}

/** Events of runs come by the dozen; between two looks at them is at least this long. */
const restMs = 100;

export function startSweeper(deps: SweeperDeps, { tickMs = 1_000 }: { tickMs?: number } = {}): Sweeper {
  let working: Promise<void> | null = null;
  let again = false;
  let closed = false;
  const kick = (): void => {
    again = true;
    if (working !== null || closed) return;
    working = (async () => {
      while (again && !closed) {
        again = false;
        await pass(deps).catch((error: unknown) =>
          deps.log.error({ err: error }, "could not look at the sweeps; trying again"),
        );
        if (again) await deps.clock.sleep(restMs);
      }
    })().finally(() => {
      working = null;
      if (again) kick();
    });
  };
  const stops = [deps.store.runs.onChange(kick), deps.clock.every(tickMs, kick)];
  kick();
  return {
    async close() {
      closed = true;
      for (const stop of stops) stop();
      await working;
    },
  };
}

async function pass(deps: SweeperDeps): Promise<void> {
  for (const sweep of await deps.store.sweeps.unended()) {
    try {
      await advance(deps, sweep);
    } catch (error) {
      deps.log.error({ sweep: sweep.id, err: error }, "could not go on with the sweep; trying again");
    }
  }
}

/** One round: what it changes is told to listeners, which brings the next. */
async function advance(deps: SweeperDeps, sweep: Sweep): Promise<void> {
  const { trials } = await withTrials(deps, sweep);
  for (const action of nextActions(sweep, trials, deps.clock.now())) {
    if (action.type === "suggest") await plan(deps, sweep, await suggested(deps, { sweep, trials }, action.otherwise));
    else if (action.type === "end") await end(deps, { sweep, trials }, action);
    else await carryOut(deps, sweep, action);
  }
}

async function carryOut(
  deps: SweeperDeps,
  sweep: Sweep,
  action: Exclude<SweepAction, { type: "suggest" | "end" }>,
): Promise<void> {
  switch (action.type) {
    case "plan":
      return plan(deps, sweep, action.plan);
    case "create_run":
      return makeRun(deps, sweep, action.number);
    case "stop":
      return stop(deps, sweep, action);
    case "cancel_run":
      return cancelRun(deps, sweep, action);
  }
}

/** Of two servers with the same next trial, the first to write has planned it. */
async function plan(deps: SweeperDeps, sweep: Sweep, next: NewPlan): Promise<void> {
  const planned: Plan = { ...next, runId: deps.ids.make("ftjob-"), stopped: null };
  await change(deps, sweep, (now) =>
    now.plans.length === next.number && now.status === "running" ? { ...now, plans: [...now.plans, planned] } : null,
  );
}

/** What the estimator names; where it names none, or what was tried, the values at hand. */
async function suggested(deps: SweeperDeps, { sweep, trials }: SweepView, otherwise: NewPlan): Promise<NewPlan> {
  try {
    const values = await deps.tuner.suggest(questionOf(sweep, trials));
    if (trials.some(({ plan: { values: tried } }) => keyOf(tried) === keyOf(values)))
      return { ...otherwise, chosen: "at random, by the seed: the estimator named values that were tried" };
    return { ...otherwise, values, chosen: `where the estimator expects most after ${trials.length} trials (TPE)` };
  } catch (error) {
    deps.log.error({ sweep: sweep.id, err: error }, "the estimator gave no answer: the next trial is drawn at random");
    return { ...otherwise, chosen: "at random, by the seed: the estimator gave no answer, see the server's log" };
  }
}

async function end(
  deps: SweeperDeps,
  { sweep, trials }: SweepView,
  { status, error }: Extract<SweepAction, { type: "end" }>,
): Promise<void> {
  const searched = status === "succeeded" && sweep.folds === undefined;
  const importance = searched ? await importanceOf(deps, { sweep, trials }) : null;
  await change(deps, sweep, (now) =>
    now.status === sweep.status ? { ...now, status, error, importance, finishedAt: deps.clock.now() } : null,
  );
}

/** With fewer trials it would be a guess. */
const leastForImportance = 5;

async function importanceOf(deps: SweeperDeps, { sweep, trials }: SweepView): Promise<Importance> {
  const question = questionOf(sweep, trials);
  const scored = question.trials.filter(({ state }) => state === "succeeded").length;
  if (scored < leastForImportance)
    return { shares: null, message: `${scored} trials are too few to tell: expected ${leastForImportance} or more.` };
  try {
    const shares = await deps.tuner.importance(question);
    const [most] = Object.keys(shares);
    if (most === undefined) return { shares: null, message: "All trials scored alike." };
    return { shares, message: `Of what was searched, ${most} mattered most, by ${scored} trials (PED-ANOVA).` };
  } catch (error) {
    deps.log.error({ sweep: sweep.id, err: error }, "importance could not be computed");
    return { shares: null, message: "It could not be computed; the server's log says why." };
  }
}

const change = (deps: SweeperDeps, sweep: Sweep, to: (now: Sweep) => Sweep | null): Promise<Sweep | null> =>
  deps.store.sweeps.update(sweep.id, to);

/**
 * A run refused here for what was asked is a trial refused; anything else is tried again. Another server may have
 * stopped the plan, and ended the sweep, while this one made its run: nobody would look after it any more.
 */
async function makeRun(deps: SweeperDeps, sweep: Sweep, number: number): Promise<void> {
  const plan = sweep.plans[number];
  if (plan === undefined) return;
  const { folds } = sweep;
  try {
    await createRun(deps, {
      id: plan.runId,
      projectId: sweep.projectId,
      model: sweep.model,
      trainingFile: sweep.trainingFile,
      validationFile: sweep.validationFile,
      seed: plan.seed,
      split: { seed: sweep.seed, ...(folds !== undefined && { fold: { number, of: folds } }) },
      metadata: {
        ...sweep.metadata,
        ...(folds === undefined
          ? { sweep: sweep.id, trial: String(number) }
          : { cross_validation: sweep.id, fold: String(number + 1) }),
      },
      // Each value of the space was checked to be one that a run takes.
      request: {
        ...sweep.request,
        hyperparameters: { ...sweep.request.hyperparameters, ...(plan.values as Partial<Hyperparameters>) },
      },
      warnings: [],
      pathOf: (name) => (Object.hasOwn(plan.values, name) ? `space.${name}` : `hyperparameters.${name}`),
    });
  } catch (error) {
    if (!(error instanceof AppError) || error.status >= 500) throw error;
    await stop(deps, sweep, { number, why: "refused", reason: `${error.code}: ${error.message}` });
    return;
  }
  const now = await deps.store.sweeps.get(sweep.projectId, sweep.id);
  const stopped = now?.plans[number]?.stopped ?? null;
  if (stopped !== null) await cancelRun(deps, sweep, { number, reason: `${stopped.why}: ${stopped.reason}` });
}

async function stop(
  deps: SweeperDeps,
  sweep: Sweep,
  { number, why, reason }: Pick<Extract<SweepAction, { type: "stop" }>, "number" | "why" | "reason">,
): Promise<void> {
  await change(deps, sweep, (now) => {
    if (now.plans[number]?.stopped !== null) return null;
    return {
      ...now,
      plans: now.plans.map((plan) => (plan.number === number ? { ...plan, stopped: { why, reason } } : plan)),
    };
  });
}

async function cancelRun(
  deps: SweeperDeps,
  sweep: Sweep,
  { number, reason }: Pick<Extract<SweepAction, { type: "cancel_run" }>, "number" | "reason">,
): Promise<void> {
  const runId = sweep.plans[number]?.runId ?? "";
  await deps.store.runs.update(runId, (run) => {
    const next = transition(run, { type: "cancel_requested", at: deps.clock.now() });
    return next.ok ? { run: next.run, events: [event(deps, { key: "sweep:stopped", message: reason })] } : null;
  });
}
