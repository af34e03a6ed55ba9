/**
 * Models by name. Three kinds share one name space, looked up in this order:
 *   `ft:<base>:<project>:<suffix>:<8 characters>`   a tuned model of this project
 *   the same + `:ckpt-step-N`                        a checkpoint of a run
 *   anything else                                    a base model of the catalogue
 */
import type { Method, Task } from "@fettle/contract";
import { AppError } from "../domain/error.js";
import { nearestName } from "../domain/nearest.js";
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
  /** Blob key of its folder. */
  artefact: string;
  artefactPath: string;
  method: Method;
  task: Task;
  labels: string[] | null;
}

type ModelDeps = Pick<AppDeps, "store" | "catalogue" | "blobs">;
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
  if (record !== null) return tunedFrom(deps, { name, record, artefact: record.artefact });
  const checkpoint = await deps.store.models.checkpoint(projectId, name);
  if (checkpoint === null) return null;
  const run = await deps.store.runs.get(projectId, checkpoint.runId);
  if (run === null || run.task === null || run.method === null) return null;
  const base = await deps.catalogue.find(run.baseModel);
  if (base === null) return null;
  const folder = `runs/${run.id}/${checkpoint.path}`;
  // A checkpoint holds what a resume needs; only one that was exported as well can answer or be tuned further.
  if ((await deps.blobs.size(`${folder}/fettle.json`)) === null) {
    const instead = run.fineTunedModel === null ? "Let the run finish" : `Use "${run.fineTunedModel}"`;
    throw new AppError(
      "model_unavailable",
      `The checkpoint "${name}" is kept for resuming its run and was not exported as a model. ${instead}.`,
      { param: "model" },
    );
  }
  const { id: runId, method, task, labels } = run;
  const artefactPath = deps.blobs.localPath(folder);
  return { name, base, tuned: { runId, artefact: folder, artefactPath, method, task, labels } };
}

async function tunedFrom(
  deps: ModelDeps,
  input: { name: string; record: ModelRecord; artefact: string },
): Promise<ResolvedModel | null> {
  const { record } = input;
  const base = await deps.catalogue.find(record.baseModel);
  if (base === null) return null;
  const { runId, method, task, labels } = record;
  const artefactPath = deps.blobs.localPath(input.artefact);
  return { name: input.name, base, tuned: { runId, artefact: input.artefact, artefactPath, method, task, labels } };
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

/** Where to answer from. A base that is not on this disk yet is fetched first. */
export async function targetOf(deps: ModelDeps, model: ResolvedModel): Promise<InferenceTarget> {
  const base = model.base.path === null ? await deps.catalogue.prepare(model.base.name) : model.base;
  const basePath = base.path;
  if (basePath === null)
    throw new AppError(
      "model_not_found",
      `The model "${base.name}" could not be put on this disk. Run \`fettle models\` to see why.`,
      { param: "model" },
    );
  if (model.tuned === null) {
    const task = base.family === "decoder" ? "chat" : base.family === "seq2seq" ? "seq2seq" : "embed";
    return { basePath, adapterPath: null, family: base.family, task };
  }
  const { artefactPath, method, task } = model.tuned;
  const adapted = method === "lora";
  return {
    basePath: adapted ? basePath : artefactPath,
    adapterPath: adapted ? artefactPath : null,
    family: base.family,
    task,
  };
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
    if ((await deps.catalogue.find(name)) !== null) {
      throw new AppError("permission_denied", `"${name}" is a base model: only tuned models can be deleted.`, {
        param: "model",
      });
    }
    throw await noSuchModel(deps, { projectId, name });
  }
  await deps.store.models.delete(projectId, name);
  await deps.blobs.delete(record.artefact);
}
