/** The shape of an adapter: a run that goes on from one trains its tensors, and cannot give them another. Pure. */
import { type Hyperparameters, hyperparametersSchema } from "@fettle/contract";
import type { RunRequest } from "./job.js";
import { type Decided, decided, refused } from "./refusal.js";

type Shape = Pick<Hyperparameters, "lora_r" | "lora_alpha" | "target_modules">;

export interface AdapterShape extends Shape {
  /** The model it belongs to, as asked for. */
  model: string;
}

export const shapeReason = ({ model }: Pick<AdapterShape, "model">): string =>
  `taken from ${model}: a run that goes on keeps its adapter's shape`;

export function isShapeName(name: string): name is keyof Shape {
  return name === "lora_r" || name === "lora_alpha" || name === "target_modules";
}

/**
 * From `adapter_config.json`. `targets`: what the run that made the adapter was asked to adapt, in its words
 * ("all-linear", which the file spells out layer by layer); null when that is not known.
 */
export function adapterShape(
  config: unknown,
  { model, targets }: { model: string; targets: Shape["target_modules"] | null },
): Decided<AdapterShape> {
  const { r, lora_alpha, target_modules } = (typeof config === "object" && config !== null ? config : {}) as Record<
    string,
    unknown
  >;
  const { shape } = hyperparametersSchema;
  const rank = shape.lora_r.safeParse(r);
  const alpha = shape.lora_alpha.safeParse(lora_alpha);
  const modules = shape.target_modules.safeParse(targets ?? target_modules);
  if (rank.success && alpha.success && modules.success)
    return decided({ model, lora_r: rank.data, lora_alpha: alpha.data, target_modules: modules.data });
  const wrong = !rank.success ? "r" : !alpha.success ? "lora_alpha" : "target_modules";
  return refused("model_unavailable", "model", unreadable(model, `has no usable ${wrong}`));
}

export const unreadable = (model: string, why: string): string =>
  `The adapter of "${model}" cannot be gone on from: its adapter_config.json ${why}. Put the original file back, or begin from the base model.`;

/** A value asked for that the adapter does not have; null when all agree. */
export function shapeConflict(
  adapter: AdapterShape,
  given: RunRequest["hyperparameters"],
): { name: keyof Shape; message: string } | null {
  for (const name of ["lora_r", "lora_alpha", "target_modules"] as const) {
    const asked = given[name];
    if (asked === undefined || shown(asked) === shown(adapter[name])) continue;
    const message = `${name} is ${shown(asked)}, but ${adapter.model} was made with ${shown(adapter[name])}: a run that goes on keeps its adapter's shape. Leave ${name} out, or begin from the base model.`;
    return { name, message };
  }
  return null;
}

/** The order of modules means nothing. */
const shown = (value: Shape[keyof Shape]): string => JSON.stringify(Array.isArray(value) ? [...value].sort() : value);
