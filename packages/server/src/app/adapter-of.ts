/** What the adapter that a run goes on from looks like, from its folder. */
import { type AdapterShape, adapterShape, unreadable } from "../domain/adapter-shape.js";
import { AppError } from "../domain/error.js";
import { hasRank } from "../domain/methods.js";
import type { AppDeps } from "./deps.js";
import type { ResolvedModel } from "./models.js";

/** An adapter's configuration has some hundred bytes. */
const maxConfigBytes = 1_000_000;

/** Null when the model is no adapter that has a rank. Throws `model_unavailable` when its configuration cannot be read. */
export async function adapterOf(
  deps: Pick<AppDeps, "store" | "blobs">,
  { projectId, model }: { projectId: string; model: ResolvedModel },
): Promise<AdapterShape | null> {
  if (model.tuned === null || !hasRank(model.tuned.method)) return null;
  const { artefact, runId } = model.tuned;
  const maker = await deps.store.runs.get(projectId, runId);
  const shape = adapterShape(await readConfig(deps, { key: `${artefact}/adapter_config.json`, name: model.name }), {
    model: model.name,
    targets: maker?.hyperparameters?.target_modules ?? null,
  });
  if (shape.ok) return shape.value;
  throw new AppError(shape.refusal.code, shape.refusal.message, { param: shape.refusal.param });
}

async function readConfig(
  { blobs }: Pick<AppDeps, "blobs">,
  { key, name }: { key: string; name: string },
): Promise<unknown> {
  const because = (why: string): AppError =>
    new AppError("model_unavailable", unreadable(name, why), { param: "model" });
  const size = await blobs.size(key);
  const bytes = size === null ? null : await blobs.get(key, { start: 0, end: maxConfigBytes });
  if (size === null || bytes === null) throw because("is missing");
  if (size > maxConfigBytes) throw because(`has ${size} bytes, more than ${maxConfigBytes}`);
  const parts: Uint8Array[] = [];
  for await (const part of bytes) parts.push(part);
  try {
    return JSON.parse(Buffer.concat(parts).toString("utf8"));
  } catch {
    throw because("is not JSON");
  }
}
