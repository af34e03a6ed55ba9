/** Does a run fit in this machine's memory, and if not, what would? Pure. */
import type { Method, TrainSpec } from "@fettle/contract";
import { gigabytes, type Load, memoryBytes } from "../domain/estimate.js";
import { type DomainRefusal, refused } from "../domain/refusal.js";
import type { BaseModel } from "./ports.js";

export interface TooLarge {
  /** As asked for. */
  model: string;
  base: BaseModel;
  load: Load;
  /** Bytes there are for training. */
  available: number;
  /** The models of this machine: for naming one that would fit. */
  known: readonly BaseModel[];
}

export interface LoadInput {
  model: BaseModel;
  method: Method;
  task: TrainSpec["task"];
  length: number;
  loraR: number;
  trainableLayers: number;
}

/** Each of their positions is compared with the whole vocabulary. */
const writing: readonly TrainSpec["task"][] = ["chat", "seq2seq", "preference", "pretraining"];

/** One row at once; `batchSize` is for the caller to raise. */
export const loadOf = ({ model, method, task, length, loraR, trainableLayers }: LoadInput): Load => ({
  family: model.family,
  method,
  batchSize: 1,
  length,
  loraR,
  trainableLayers,
  generates: writing.includes(task),
});

/** The chosen batch leaves a third of the memory free: an estimate is no promise. */
export function rowsThatFit(model: BaseModel, load: Load, available: number): number {
  const one = memoryBytes(model, load);
  const perRow = Math.max(1, memoryBytes(model, { ...load, batchSize: 2 }) - one);
  return Math.max(1, 1 + Math.floor((available * 0.67 - one) / perRow));
}

/** Names what would fit: fewer rows at once, another method, or the largest model of the family that does. */
export function tooLarge({ model, base, load, available, known }: TooLarge): { ok: false; refusal: DomainRefusal } {
  const { method, batchSize, length } = load;
  const fits = (size: BaseModel, change: Partial<Load>): string | null => {
    const bytes = memoryBytes(size, { ...load, ...change });
    return bytes <= available ? `would fit with about ${gigabytes(bytes)}` : null;
  };
  const needed = gigabytes(memoryBytes(base, load));
  const what = `Training ${model} with the method "${method}" needs about ${needed} of memory; this machine has ${gigabytes(available)} for it.`;
  const param = "hyperparameters.per_device_train_batch_size";
  const oneRow = batchSize > 1 ? fits(base, { batchSize: 1 }) : null;
  if (oneRow !== null)
    return refused("model_too_large", param, `${what} ${param.split(".")[1]} 1 (now ${batchSize}) ${oneRow}.`);
  const adapter = method === "full" ? fits(base, { method: "lora", batchSize: 1 }) : null;
  if (adapter !== null) return refused("model_too_large", "method", `${what} The method "lora" ${adapter}.`);
  const shorter = length > 256 ? fits(base, { batchSize: 1, length: 256 }) : null;
  if (shorter !== null) {
    const cut = `max_length 256 (the longest row has about ${length} tokens)`;
    return refused("model_too_large", "hyperparameters.max_length", `${what} ${cut} ${shorter}.`);
  }
  const [other] = known
    .filter(({ family, name }) => family === base.family && name !== base.name)
    .map((candidate) => ({ ...candidate, fit: fits(candidate, { batchSize: 1 }) }))
    .filter(({ fit }) => fit !== null)
    .sort((a, b) => b.numParameters - a.numParameters);
  const fix =
    other === undefined
      ? "No model of this kind known here would fit: use a machine with more memory."
      : `The model "${other.name}" ${other.fit}.`;
  return refused("model_too_large", "model", `${what} ${fix}`);
}
