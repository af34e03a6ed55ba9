/** Sweeps: starting one, looking at it, ending it. What it does by itself is in sweeper.ts. */
import type { CreateSweep, Metric, SearchedName } from "@fettle/contract";
import { AppError } from "../domain/error.js";
import { checkGrid, checkSpace, defaultSpace } from "../domain/search-space.js";
import type { Budget } from "../domain/sweep-budget.js";
import type { Plan, Sweep, Trial } from "../domain/sweep.js";
import type { AppDeps } from "./deps.js";
import { checkStart, ownRun, randomSeed, type RunDeps } from "./jobs.js";
import type { Page, PageRequest, Store } from "./ports.js";

/** Makes the sweep; its first trial follows. Refuses what no trial could begin with. */
export async function createSweep(
  deps: RunDeps,
  input: { projectId: string; request: CreateSweep; pricePerHour: number },
): Promise<Sweep> {
  const { request, projectId } = input;
  const run = ownRun({ projectId, request });
  await checkStart(deps, run);
  const space = request.space ?? defaultSpace;
  const fixed = Object.keys(run.request.hyperparameters);
  const checked = checkSpace(space, fixed);
  if (!checked.ok) throw asError(checked.refusal);
  const grid = request.search === "grid" ? checkGrid(space) : null;
  if (grid?.ok === false) throw asError(grid.refusal);
  const sweep: Sweep = {
    id: deps.ids.make("sweep-"),
    projectId,
    createdAt: deps.clock.now(),
    finishedAt: null,
    status: "running",
    model: run.model,
    trainingFile: run.trainingFile,
    validationFile: run.validationFile,
    metadata: run.metadata,
    request: run.request,
    seed: run.seed ?? randomSeed(deps),
    space,
    search: request.search,
    pruning: request.pruning,
    budget: budgetOf(request, input.pricePerHour),
    metric: metricOf(request),
    parallel: request.parallel ?? null,
    repeats: request.repeats,
    plans: [],
    importance: null,
    error: null,
  };
  await deps.store.sweeps.create(sweep);
  return sweep;
}

const asError = ({
  code,
  message,
  param,
}: {
  code: AppError["code"];
  message: string;
  param: string | null;
}): AppError => new AppError(code, message, { param });

function budgetOf({ budget }: CreateSweep, pricePerHour: number): Budget {
  const { trials = null, minutes = null, money = null } = budget;
  if (money !== null && pricePerHour === 0)
    throw new AppError(
      "value_out_of_range",
      "budget.money needs to know what an hour of this machine costs. Set runs.price_per_hour in fettle.yaml and start the server again, or give budget.minutes.",
      { param: "budget.money" },
    );
  return { trials, minutes, money, pricePerHour };
}

/** Searching what the loss itself is made of would compare numbers of different meaning. */
const lossParts: readonly SearchedName[] = ["class_weights", "beta", "max_length"];

function metricOf({ metric: { name, direction }, space = {} }: CreateSweep): Metric {
  const part = lossParts.find((one) => space[one as keyof typeof space] !== undefined);
  if (part !== undefined && name === "valid_loss")
    throw new AppError(
      "invalid_request",
      `${part} changes what valid_loss measures, so that trials cannot be compared by it. Choose a metric of the task, such as accuracy, or do not search ${part}.`,
      { param: "metric.name" },
    );
  return { name, direction: direction ?? (/loss$|^mae$|^rmse$|perplexity/.test(name) ? "minimize" : "maximize") };
}

export interface SweepView {
  sweep: Sweep;
  trials: Trial[];
}

export async function getSweep(
  deps: { store: Pick<Store, "sweeps" | "runs"> },
  { projectId, sweepId }: { projectId: string; sweepId: string },
): Promise<SweepView> {
  const sweep = await deps.store.sweeps.get(projectId, sweepId);
  if (sweep === null) throw noSuchSweep(sweepId);
  return withTrials(deps, sweep);
}

export async function listSweeps(
  deps: { store: Pick<Store, "sweeps" | "runs"> },
  { projectId, ...page }: PageRequest & { projectId: string },
): Promise<Page<SweepView>> {
  const { data, hasMore } = await deps.store.sweeps.list(projectId, page);
  return { data: await Promise.all(data.map((sweep) => withTrials(deps, sweep))), hasMore };
}

/** The answer shows it `cancelling`: its runs end at their next step. Throws `conflict` when it has ended. */
export async function cancelSweep(
  deps: Pick<AppDeps, "store">,
  { projectId, sweepId }: { projectId: string; sweepId: string },
): Promise<SweepView> {
  const { sweep } = await getSweep(deps, { projectId, sweepId });
  const cancelling = await deps.store.sweeps.update(sweep.id, (now) =>
    now.status === "running" || now.status === "cancelling" ? { ...now, status: "cancelling" } : null,
  );
  if (cancelling === null)
    throw new AppError("conflict", `Sweep ${sweepId} has ended: only one that is running can be cancelled.`, {
      param: "sweep_id",
    });
  return withTrials(deps, cancelling);
}

export async function withTrials(deps: { store: Pick<Store, "runs"> }, sweep: Sweep): Promise<SweepView> {
  const found = await deps.store.runs.evaluated(sweep.plans.map(({ runId }) => runId));
  const trial = (plan: Plan): Trial => ({ plan, ...(found.get(plan.runId) ?? { run: null, evaluations: [] }) });
  return { sweep, trials: sweep.plans.map(trial) };
}

const noSuchSweep = (sweepId: string): AppError =>
  new AppError("not_found", `No sweep "${sweepId}" in this project. List them to see their ids: GET /api/sweeps.`, {
    param: "sweep_id",
  });
