/** Sweeps: starting one, looking at it, ending it. What it does by itself is in sweeper.ts. */
import type { CreateSweep, Metric, SearchedName } from "@fettle/contract";
import { AppError } from "../domain/error.js";
import { checkGrid, checkSpace, defaultSpace } from "../domain/search-space.js";
import type { Budget } from "../domain/sweep-budget.js";
import type { Plan, Sweep, Trial } from "../domain/sweep.js";
import type { AppDeps } from "./deps.js";
import { checkStart, type NewRun, ownRun, randomSeed, type RunDeps } from "./jobs.js";
import type { Page, PageRequest, Store, SweepKind } from "./ports.js";

/** Makes the sweep; its first trial follows. Refuses what no trial could begin with. */
export async function createSweep(
  deps: RunDeps,
  input: { projectId: string; request: CreateSweep; pricePerHour: number },
): Promise<Sweep> {
  const { request, projectId } = input;
  const run = ownRun({ projectId, request });
  await checkStart(deps, run);
  const space = request.space ?? defaultSpace;
  const vain = teachersOwn.find((name) => space[name] !== undefined && run.request.teacher === undefined);
  if (vain !== undefined)
    throw new AppError(
      "value_out_of_range",
      `${vain} is searched, but no teacher is named: expected the name of one in teacher. Name it, or leave ${vain} out of space.`,
      { param: `space.${vain}` },
    );
  const fixed = Object.keys(run.request.hyperparameters);
  const checked = checkSpace(space, fixed);
  if (!checked.ok) throw asError(checked.refusal);
  const grid = request.search === "grid" ? checkGrid(space) : null;
  if (grid?.ok === false) throw asError(grid.refusal);
  const sweep: Sweep = {
    ...begun(deps, run),
    id: deps.ids.make("sweep-"),
    space,
    search: request.search,
    pruning: request.pruning,
    budget: budgetOf(request.budget, input.pricePerHour),
    metric: metricOf(request),
    parallel: request.parallel ?? null,
    repeats: request.repeats,
  };
  await deps.store.sweeps.create(sweep);
  return sweep;
}

/** What is the same of all of them. */
export const begun = (deps: RunDeps, run: NewRun) =>
  ({
    projectId: run.projectId,
    createdAt: deps.clock.now(),
    finishedAt: null,
    status: "running",
    model: run.model,
    trainingFile: run.trainingFile,
    validationFile: run.validationFile,
    metadata: run.metadata,
    request: run.request,
    seed: run.seed ?? randomSeed(deps),
    plans: [],
    importance: null,
    error: null,
  }) satisfies Partial<Sweep>;

const asError = ({
  code,
  message,
  param,
}: {
  code: AppError["code"];
  message: string;
  param: string | null;
}): AppError => new AppError(code, message, { param });

export function budgetOf(budget: CreateSweep["budget"], pricePerHour: number): Budget {
  const { trials = null, minutes = null, money = null } = budget;
  if (money !== null && pricePerHour === 0)
    throw new AppError(
      "value_out_of_range",
      "budget.money needs to know what an hour of this machine costs. Set runs.price_per_hour in fettle.yaml and start the server again, or give budget.minutes.",
      { param: "budget.money" },
    );
  return { trials, minutes, money, pricePerHour };
}

const teachersOwn = ["distill_weight", "distill_temperature"] as const;

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

interface SweepId {
  projectId: string;
  kind: SweepKind;
  id: string;
}

export async function getSweep(deps: { store: Pick<Store, "sweeps" | "runs"> }, asked: SweepId): Promise<SweepView> {
  const sweep = await deps.store.sweeps.get(asked.projectId, asked.id);
  if (sweep === null || (sweep.folds === undefined) !== (asked.kind === "sweep")) throw noSuch(asked);
  return withTrials(deps, sweep);
}

export async function listSweeps(
  deps: { store: Pick<Store, "sweeps" | "runs"> },
  { projectId, ...page }: PageRequest & Pick<SweepId, "projectId" | "kind">,
): Promise<Page<SweepView>> {
  const { data, hasMore } = await deps.store.sweeps.list(projectId, page);
  return { data: await Promise.all(data.map((sweep) => withTrials(deps, sweep))), hasMore };
}

/** The answer shows it `cancelling`: its runs end at their next step. Throws `conflict` when it has ended. */
export async function cancelSweep(deps: Pick<AppDeps, "store">, asked: SweepId): Promise<SweepView> {
  const { sweep } = await getSweep(deps, asked);
  const cancelling = await deps.store.sweeps.update(sweep.id, (now) =>
    now.status === "running" || now.status === "cancelling" ? { ...now, status: "cancelling" } : null,
  );
  if (cancelling === null)
    throw new AppError("conflict", `${asked.id} has ended: only what is running can be cancelled.`, {
      param: `${asked.kind}_id`,
    });
  return withTrials(deps, cancelling);
}

export async function withTrials(deps: { store: Pick<Store, "runs"> }, sweep: Sweep): Promise<SweepView> {
  const found = await deps.store.runs.evaluated(sweep.plans.map(({ runId }) => runId));
  const trial = (plan: Plan): Trial => ({ plan, ...(found.get(plan.runId) ?? { run: null, evaluations: [] }) });
  return { sweep, trials: sweep.plans.map(trial) };
}

const listings = { sweep: ["sweep", "/api/sweeps"], cross_validation: ["cross-validation", "/api/cross-validations"] };

function noSuch({ kind, id }: SweepId): AppError {
  const [name, path] = listings[kind];
  const message = `No ${name} "${id}" in this project. List them to see their ids: GET ${path}.`;
  return new AppError("not_found", message, { param: `${kind}_id` });
}
