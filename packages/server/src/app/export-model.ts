/** A tuned model's files, for use elsewhere: as they are, an adapter folded into its base, or in another format. */
import { type ExportFormat, type ExportQuantize, exportQuantizations, type Task } from "@fettle/contract";
import { outputOf } from "../domain/compatibility.js";
import { AppError } from "../domain/error.js";
import { leavesAdapter, readsVirtualTokens } from "../domain/methods.js";
import type { AppDeps } from "./deps.js";
import { artefactFolder, type ReadyModelDeps, type ResolvedModel, resolveModel, targetOf } from "./models.js";

/** `working` comes every few seconds while nothing can be sent yet, so that no waiting client gives up. */
export type ExportPart =
  | { type: "working"; doing: string }
  | { type: "file"; name: string; bytes: number; content: AsyncIterable<Uint8Array> };

type ExportDeps = ReadyModelDeps & Pick<AppDeps, "clock" | "ids">;

/** What is asked beside the model. */
interface Shape {
  format: ExportFormat;
  quantize: ExportQuantize | null;
  /** Share of the weights. */
  prune: number;
}

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
  input: { projectId: string; name: string; merged: boolean; signal: AbortSignal } & Partial<Shape>,
): Promise<ModelExport> {
  const model = await resolveModel(deps, input);
  if (model.tuned === null)
    throw new AppError(
      "invalid_request",
      `"${model.name}" is a base model: only tuned models and checkpoints are exported. Its files lie in the models folder of FETTLE_HOME, or where fettle.yaml says.`,
      { param: "model" },
    );
  const { format, quantize = null, prune = 0, signal } = input;
  const isAdapter = leavesAdapter(model.tuned.method);
  if (readsVirtualTokens(model.tuned.method) && (input.merged || (format ?? "safetensors") !== "safetensors"))
    throw new AppError(
      "export_not_possible",
      `"${model.name}" was tuned with the method "${model.tuned.method}": virtual tokens stand before a text and cannot be folded into weights. Export it as it is (format=safetensors), for PEFT.`,
      { param: input.merged ? "merged" : "format" },
    );
  if (format !== undefined) {
    const shape = { format, quantize, prune };
    requirePossible(shape, { merged: input.merged, task: model.tuned.task });
    return { merged: isAdapter && format !== "safetensors", parts: writtenParts(deps, model, { ...shape, signal }) };
  }
  if (quantize !== null || prune > 0)
    throw new AppError(
      "invalid_request",
      "quantize and prune need a format. Give format=gguf or format=onnx; prune takes format=merged too.",
      { param: "format" },
    );
  const merged = input.merged && isAdapter;
  return { merged, parts: merged ? mergedParts(deps, model, signal) : plainParts(deps, model) };
}

function requirePossible({ format, quantize, prune }: Shape, { merged, task }: { merged: boolean; task: Task }): void {
  const refuse = (param: string, message: string): never => {
    throw new AppError("export_not_possible", message, { param });
  };
  if (merged && format === "safetensors")
    refuse("format", "format=safetensors is the adapter as it is, and merged=true asks for another. Leave one out.");
  const known = exportQuantizations[format];
  if (quantize !== null && !known.includes(quantize))
    refuse("quantize", `${format} has no ${quantize}. Its quantisations: ${known.join(", ") || "none"}.`);
  if (prune > 0 && format === "safetensors")
    refuse("prune", "An adapter cannot be pruned apart from its base. Use format=merged.");
  if (format === "gguf" && outputOf(task) !== "chat")
    refuse("format", `llama.cpp writes text, and this model's task is ${task}. Use format=merged or format=onnx.`);
}

/** What a killed server left of merged models. */
export const forgetExports = (deps: Pick<AppDeps, "blobs">): Promise<void> => deps.blobs.delete(folder);

async function* plainParts(deps: ExportDeps, model: ResolvedModel): AsyncGenerator<ExportPart> {
  const { name, tuned } = model;
  if (tuned === null) return;
  yield* whileWaiting(deps, artefactFolder(deps, name, tuned), () => "working");
  yield* filesOf(deps, tuned.artefact, name);
}

function mergedParts(deps: ExportDeps, model: ResolvedModel, signal: AbortSignal): AsyncGenerator<ExportPart> {
  return madeParts(deps, model.name, async (out) => {
    const { basePath, adapterPath } = await targetOf(deps, model);
    if (adapterPath === null) throw new AppError("internal_error", `"${model.name}" has no adapter to merge.`);
    await deps.exporter.merge({ basePath, adapterPath, out }, signal);
  });
}

function writtenParts(
  deps: ExportDeps,
  model: ResolvedModel,
  { signal, ...shape }: Shape & { signal: AbortSignal },
): AsyncGenerator<ExportPart> {
  const { name, tuned } = model;
  return madeParts(deps, name, async (out, doing) => {
    const { basePath, adapterPath } = await targetOf(deps, model);
    const runFolder = deps.blobs.localPath(`runs/${tuned?.runId ?? ""}`);
    const sourcePath = adapterPath ?? basePath;
    await deps.exporter.write({ sourcePath, basePath, runFolder, name, out, ...shape }, { signal, doing });
  });
}

/** Files that are made for this one answer, and gone when it has ended. */
async function* madeParts(
  deps: ExportDeps,
  name: string,
  make: (out: string, doing: (what: string) => void) => Promise<void>,
): AsyncGenerator<ExportPart> {
  const key = `${folder}/${deps.ids.make("export-")}`;
  let current = "working";
  const made = make(deps.blobs.localPath(`${key}/model`), (what) => {
    current = what;
  });
  try {
    yield* whileWaiting(deps, made, () => current);
    yield* filesOf(deps, `${key}/model`, name);
  } finally {
    await made.catch(() => undefined);
    await deps.blobs.delete(key);
  }
}

async function* whileWaiting(
  deps: Pick<AppDeps, "clock">,
  work: Promise<unknown>,
  doing: () => string,
): AsyncGenerator<ExportPart> {
  let isDone = false;
  const done = (): void => {
    isDone = true;
  };
  const settled = work.then(done, done);
  for (;;) {
    await Promise.race([settled, deps.clock.sleep(workingMs)]);
    if (isDone) break;
    yield { type: "working", doing: doing() };
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
