/**
 * Models by name. Three kinds share one name space, looked up in this order:
 *   `ft:<base>:<project>:<suffix>:<8 characters>`   a tuned model of this project
 *   the same + `:ckpt-step-N`                        a checkpoint of a run
 *   anything else                                    a base model of the catalogue
 */
import type { Method, Task } from "@fettle/contract";
import { AppError } from "../domain/error.js";
import type { Run } from "../domain/job.js";
import { leavesAdapter } from "../domain/methods.js";
import { nearestName } from "../domain/nearest.js";
import { checkpointModelKey, isStillThere, isWrittenAsModel } from "./checkpoint-files.js";
import type { AppDeps } from "./deps.js";
import type { BaseModel, InferenceTarget, ModelRecord } from "./ports.js";

export interface ResolvedModel {
  /** As asked for. */
  name: string;
  base: BaseModel;
  tuned: Tuned | null;
}

interface Tuned {
  runId: string;
  /** Blob key of its folder; of a checkpoint it may not be written yet: see `artefactFolder`. */
  artefact: string;
  checkpoint: { run: Run; step: number } | null;
  method: Method;
  task: Task;
  labels: string[] | null;
}

type ModelDeps = Pick<AppDeps, "store" | "catalogue" | "blobs">;
export type ReadyModelDeps = ModelDeps & Pick<AppDeps, "exporter">;
interface Named {
  projectId: string;
  name: string;
}

/** Throws `model_not_found`, which names the nearest model this project may use. */
export async function resolveModel(deps: ModelDeps, { projectId, name }: Named): Promise<ResolvedModel> {
  const found = name.startsWith("ft:") ? await resolveTuned(deps, { projectId, name }) : await resolveBase(deps, name);
  if (found !== null) return found;
  throw await noSuchModel(deps, { projectId, name });
}

async function resolveBase(deps: ModelDeps, name: string): Promise<ResolvedModel | null> {
  const base = await deps.catalogue.find(name);
  return base === null ? null : { name, base, tuned: null };
}

async function resolveTuned(deps: ModelDeps, { projectId, name }: Named): Promise<ResolvedModel | null> {
  const record = await deps.store.models.get(projectId, name);
  if (record !== null) return tunedFrom(deps, { name, record });
  const checkpoint = await deps.store.models.checkpoint(projectId, name);
  if (checkpoint === null) return null;
  const run = await deps.store.runs.get(projectId, checkpoint.runId);
  if (run === null || run.task === null || run.method === null) return null;
  const base = await deps.catalogue.find(run.baseModel);
  if (base === null) return null;
  const { step } = checkpoint;
  if (!(await isStillThere(deps.blobs, { runId: run.id, step }))) throw gone(name, run);
  const artefact = checkpointModelKey({ runId: run.id, step });
  const { method, task, labels } = run;
  return { name, base, tuned: { runId: run.id, artefact, checkpoint: { run, step }, method, task, labels } };
}

function gone(name: string, run: Run): AppError {
  const instead =
    run.fineTunedModel === null
      ? "List the run's checkpoints to see those that are left"
      : `Use "${run.fineTunedModel}"`;
  return new AppError(
    "model_unavailable",
    `The checkpoint "${name}" is no longer on this disk: a run keeps its newest checkpoints, its best, and those that were asked for. ${instead}.`,
    { param: "model" },
  );
}

async function tunedFrom(
  deps: ModelDeps,
  { name, record }: { name: string; record: ModelRecord },
): Promise<ResolvedModel | null> {
  const base = await deps.catalogue.find(record.baseModel);
  if (base === null) return null;
  const { runId, artefact, method, task, labels } = record;
  return { name, base, tuned: { runId, artefact, checkpoint: null, method, task, labels } };
}

/**
 * The tuned model's folder on this disk. A checkpoint is written as a model when it is first asked for, and stays from
 * then on: a run that began with it can be resumed, whatever its own run prunes.
 */
export async function artefactFolder(deps: ReadyModelDeps, name: string, tuned: Tuned): Promise<string> {
  const folder = deps.blobs.localPath(tuned.artefact);
  if (tuned.checkpoint === null) return folder;
  const { run, step } = tuned.checkpoint;
  if (await isWrittenAsModel(deps.blobs, { runId: run.id, step })) return folder;
  const start = await startOfCheckpoint(deps, name, run);
  const runFolder = deps.blobs.localPath(`runs/${run.id}`);
  await deps.exporter.checkpoint({ runFolder, step, ...start, out: folder });
  // Pruned and struck off the list meanwhile: nobody could name the folder again.
  if ((await deps.store.models.checkpoint(run.projectId, name)) === null) {
    await deps.blobs.delete(tuned.artefact);
    throw gone(name, run);
  }
  return folder;
}

async function startOfCheckpoint(deps: ReadyModelDeps, name: string, run: Run): Promise<StartingPoint> {
  try {
    return await startOf(deps, run);
  } catch (cause) {
    if (!(cause instanceof AppError) || cause.code !== "model_not_found") throw cause;
    throw new AppError(
      "model_unavailable",
      `The checkpoint "${name}" needs the model its run began with, and that is gone: ${cause.message}`,
      { param: "model", cause },
    );
  }
}

export interface StartingPoint {
  basePath: string;
  /** The adapter a run goes on from. */
  adapterPath: string | null;
}

/** What a run trains on, on this disk. A tuned adapter is gone on from; a full tune is a base of its own. */
export async function startOf(deps: ReadyModelDeps, run: Run): Promise<StartingPoint> {
  const model = await resolveModel(deps, { projectId: run.projectId, name: run.model });
  const folder = model.tuned === null ? null : await artefactFolder(deps, model.name, model.tuned);
  if (folder !== null && !leavesAdapter(model.tuned?.method)) return { basePath: folder, adapterPath: null };
  return { basePath: await basePathOf(deps, model.base), adapterPath: folder };
}

/** A base that is not on this disk yet is fetched first. */
async function basePathOf(deps: Pick<AppDeps, "catalogue">, base: BaseModel): Promise<string> {
  const path = base.path ?? (await deps.catalogue.prepare(base.name)).path;
  if (path !== null) return path;
  throw new AppError(
    "model_not_found",
    `The model "${base.name}" could not be put on this disk. Run \`fettle models\` to see why.`,
    { param: "model" },
  );
}

async function noSuchModel(deps: ModelDeps, { projectId, name }: Named): Promise<AppError> {
  const known = [
    ...(await deps.catalogue.list()).map((model) => model.name),
    ...(await deps.store.models.list(projectId)).map((model) => model.name),
  ];
  const near = nearestName(name, known);
  const hint = near === null ? "GET /v1/models lists the models." : `Did you mean "${near}"?`;
  return new AppError(
    "model_not_found",
    `The model "${name}" does not exist or you do not have access to it. ${hint}`,
    { param: "model" },
  );
}

/** Where to answer from. What is not on this disk yet is fetched or written first. */
export async function targetOf(deps: ReadyModelDeps, model: ResolvedModel): Promise<InferenceTarget> {
  const { base, tuned } = model;
  if (tuned === null) {
    const task = base.family === "decoder" ? "chat" : base.family === "seq2seq" ? "seq2seq" : "embed";
    return { basePath: await basePathOf(deps, base), adapterPath: null, family: base.family, task };
  }
  const folder = await artefactFolder(deps, model.name, tuned);
  const place = leavesAdapter(tuned.method)
    ? { basePath: await basePathOf(deps, base), adapterPath: folder }
    : { basePath: folder, adapterPath: null };
  return { ...place, family: base.family, task: tuned.task };
}

export interface ListedModels {
  bases: BaseModel[];
  tuned: ModelRecord[];
}

export async function listModels(
  deps: Pick<AppDeps, "store" | "catalogue">,
  input: { projectId: string },
): Promise<ListedModels> {
  const [bases, tuned] = await Promise.all([deps.catalogue.list(), deps.store.models.list(input.projectId)]);
  return { bases, tuned };
}

export type FoundModel =
  | { kind: "base"; base: BaseModel }
  | { kind: "tuned"; record: ModelRecord }
  | { kind: "checkpoint"; name: string; createdAt: number };

export async function getModel(deps: ModelDeps, { projectId, name }: Named): Promise<FoundModel> {
  const record = await deps.store.models.get(projectId, name);
  if (record !== null) return { kind: "tuned", record };
  const checkpoint = await deps.store.models.checkpoint(projectId, name);
  if (checkpoint !== null) return { kind: "checkpoint", name, createdAt: checkpoint.createdAt };
  const base = await deps.catalogue.find(name);
  if (base !== null) return { kind: "base", base };
  throw await noSuchModel(deps, { projectId, name });
}

/** Only tuned models can be deleted; the run and its checkpoints stay. */
export async function deleteModel(deps: ModelDeps, { projectId, name }: Named): Promise<void> {
  const record = await deps.store.models.get(projectId, name);
  if (record === null) {
    const isCheckpoint = (await deps.store.models.checkpoint(projectId, name)) !== null;
    if (isCheckpoint || (await deps.catalogue.find(name)) !== null) {
      const what = isCheckpoint ? "a checkpoint" : "a base model";
      throw new AppError("permission_denied", `"${name}" is ${what}: only tuned models can be deleted.`, {
        param: "model",
      });
    }
    throw await noSuchModel(deps, { projectId, name });
  }
  const outcome = await deps.store.models.delete(projectId, name);
  if (outcome.needed_by !== null)
    throw new AppError(
      "conflict",
      `"${name}" is needed by ${outcome.needed_by}, which has not ended. Cancel it, or wait for its end, then delete the model.`,
      { param: "model" },
    );
  await deps.blobs.delete(record.artefact);
}
