import type { CreateEmbedding } from "@fettle/contract";
import { AppError } from "../domain/error.js";
import type { AppDeps } from "./deps.js";
import { resolveModel, targetOf } from "./models.js";

export interface Embedded {
  /** One vector an input, in their order. */
  vectors: Float32Array[];
  numTokens: number;
}

/** `dimensions` may only be the model's own: cutting a vector short is right only for models trained for it. */
export async function embed(
  deps: Pick<AppDeps, "store" | "catalogue" | "blobs" | "exporter" | "inference">,
  input: { projectId: string; request: CreateEmbedding; signal: AbortSignal },
): Promise<Embedded> {
  const { request } = input;
  const model = await resolveModel(deps, { projectId: input.projectId, name: request.model });
  const own = model.base.hiddenSize;
  if (request.dimensions != null && request.dimensions !== own) {
    throw new AppError(
      "unsupported_parameter",
      `\`dimensions\` is ${request.dimensions}, but "${request.model}" gives ${own}. Leave dimensions out, or shorten the vectors yourself.`,
      { param: "dimensions" },
    );
  }
  const target = await targetOf(deps, model);
  return deps.inference.embed({ ...target, task: "embed" }, inputsOf(request.input), input.signal);
}

function inputsOf(input: CreateEmbedding["input"]): (string | number[])[] {
  if (typeof input === "string") return [input];
  if (input.every((item) => typeof item === "number")) return [input];
  return input.map((item) => (typeof item === "number" ? [item] : item));
}
