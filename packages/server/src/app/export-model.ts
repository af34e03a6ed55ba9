/** A tuned model's files, for use elsewhere: as they are, or an adapter folded into its base. */
import { AppError } from "../domain/error.js";
import type { AppDeps } from "./deps.js";
import { artefactFolder, type ReadyModelDeps, type ResolvedModel, resolveModel, targetOf } from "./models.js";

/** `working` comes every few seconds while nothing can be sent yet, so that no waiting client gives up. */
export type ExportPart =
  | { type: "working" }
  | { type: "file"; name: string; bytes: number; content: AsyncIterable<Uint8Array> };

type ExportDeps = ReadyModelDeps & Pick<AppDeps, "clock" | "ids">;

const workingMs = 5_000;
/** Merged models lie here while they are sent. */
const folder = "exports";

export interface ModelExport {
  /** False when it was asked for, but nothing is there to merge: the model was tuned whole. */
  merged: boolean;
  parts: AsyncIterable<ExportPart>;
}

/** Throws AppError at once for a model that cannot be exported. What is made for sending is gone when `parts` has ended. */
export async function exportModel(
  deps: ExportDeps,
  input: { projectId: string; name: string; merged: boolean; signal: AbortSignal },
): Promise<ModelExport> {
  const model = await resolveModel(deps, input);
  if (model.tuned === null)
    throw new AppError(
      "invalid_request",
      `"${model.name}" is a base model: only tuned models and checkpoints are exported. Its files lie in the models folder of FETTLE_HOME, or where fettle.yaml says.`,
      { param: "model" },
    );
  const merged = input.merged && model.tuned.method === "lora";
  return { merged, parts: merged ? mergedParts(deps, model, input.signal) : plainParts(deps, model) };
}

/** What a killed server left of merged models. */
export const forgetExports = (deps: Pick<AppDeps, "blobs">): Promise<void> => deps.blobs.delete(folder);

async function* plainParts(deps: ExportDeps, model: ResolvedModel): AsyncGenerator<ExportPart> {
  const { name, tuned } = model;
  if (tuned === null) return;
  yield* whileWaiting(deps, artefactFolder(deps, name, tuned));
  yield* filesOf(deps, tuned.artefact, name);
}

async function* mergedParts(deps: ExportDeps, model: ResolvedModel, signal: AbortSignal): AsyncGenerator<ExportPart> {
  const key = `${folder}/${deps.ids.make("export-")}`;
  const merging = async (): Promise<void> => {
    const { basePath, adapterPath } = await targetOf(deps, model);
    if (adapterPath === null) throw new AppError("internal_error", `"${model.name}" has no adapter to merge.`);
    await deps.exporter.merge({ basePath, adapterPath, out: deps.blobs.localPath(`${key}/model`) }, signal);
  };
  const merged = merging();
  try {
    yield* whileWaiting(deps, merged);
    yield* filesOf(deps, `${key}/model`, model.name);
  } finally {
    await merged.catch(() => undefined);
    await deps.blobs.delete(key);
  }
}

async function* whileWaiting(deps: Pick<AppDeps, "clock">, work: Promise<unknown>): AsyncGenerator<ExportPart> {
  let isDone = false;
  const done = (): void => {
    isDone = true;
  };
  const settled = work.then(done, done);
  for (;;) {
    await Promise.race([settled, deps.clock.sleep(workingMs)]);
    if (isDone) break;
    yield { type: "working" };
  }
  await work;
}

async function* filesOf(deps: Pick<AppDeps, "blobs">, key: string, name: string): AsyncGenerator<ExportPart> {
  const files = await deps.blobs.list(key);
  const gone = (): AppError =>
    new AppError("model_unavailable", `The files of "${name}" are gone: it was deleted meanwhile.`, { param: "model" });
  if (files.length === 0) throw gone();
  for (const file of files) {
    const content = await deps.blobs.get(`${key}/${file.name}`);
    if (content === null) throw gone();
    yield { type: "file", ...file, content };
  }
}
