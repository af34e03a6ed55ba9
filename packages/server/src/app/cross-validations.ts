/** Cross-validations: starting one, looking at it, ending it. The sweeper carries them out, as it does sweeps. */
import type { CreateCrossValidation } from "@fettle/contract";
import { AppError } from "../domain/error.js";
import type { Sweep } from "../domain/sweep.js";
import type { AppDeps } from "./deps.js";
import { tooFewForFolds } from "./held-out.js";
import { checkStart, ownRun, type RunDeps } from "./jobs.js";
import type { Page, PageRequest } from "./ports.js";
import { begun, budgetOf, cancelSweep, getSweep, listSweeps, type SweepView } from "./sweeps.js";

export interface CrossValidationView extends SweepView {
  /** Rows of each class; null where rows have none, or several. */
  labels: Record<string, number> | null;
}

/** Refuses what no fold could begin with. Of a file that is still being read, the runs look at the rows. */
export async function createCrossValidation(
  deps: RunDeps,
  input: { projectId: string; request: CreateCrossValidation; pricePerHour: number },
): Promise<CrossValidationView> {
  const { request, projectId } = input;
  const { folds } = request;
  const run = ownRun({ projectId, request });
  await checkStart(deps, run);
  const rows = (await deps.store.files.get(projectId, run.trainingFile))?.report?.numUsable ?? folds;
  if (rows < folds) throw new AppError("too_few_rows", tooFewForFolds(rows, folds), { param: "folds" });
  const sweep: Sweep = {
    ...begun(deps, run),
    id: deps.ids.make("crossval-"),
    space: {},
    search: "grid",
    pruning: "none",
    budget: budgetOf(request.budget, input.pricePerHour),
    metric: { name: "valid_loss", direction: "minimize" },
    parallel: request.parallel ?? null,
    repeats: 0,
    folds,
  };
  await deps.store.sweeps.create(sweep);
  return withLabels(deps, { sweep, trials: [] });
}

type Deps = Pick<AppDeps, "store">;
interface Asked {
  projectId: string;
  id: string;
}

const kind = "cross_validation";

export const getCrossValidation = async (deps: Deps, asked: Asked): Promise<CrossValidationView> =>
  withLabels(deps, await getSweep(deps, { ...asked, kind }));

/** As `cancelSweep`. */
export const cancelCrossValidation = async (deps: Deps, asked: Asked): Promise<CrossValidationView> =>
  withLabels(deps, await cancelSweep(deps, { ...asked, kind }));

export async function listCrossValidations(
  deps: Deps,
  input: PageRequest & { projectId: string },
): Promise<Page<CrossValidationView>> {
  const { data, hasMore } = await listSweeps(deps, { ...input, kind });
  return { data: await Promise.all(data.map((view) => withLabels(deps, view))), hasMore };
}

async function withLabels(deps: Deps, view: SweepView): Promise<CrossValidationView> {
  const report = (await deps.store.files.get(view.sweep.projectId, view.sweep.trainingFile))?.report ?? null;
  return { ...view, labels: report?.kind === "classification" ? report.labels : null };
}
