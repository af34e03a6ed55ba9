import type { ClassifyRequest, Task } from "@fettle/contract";
import { AppError } from "../domain/error.js";
import type { AppDeps } from "./deps.js";
import { resolveModel, targetOf } from "./models.js";
import type { LabelScore } from "./ports.js";

export interface Classified {
  /** One list a text, all labels, most probable first. Of several labels each has a probability of its own. */
  scores: LabelScore[][];
  numTokens: number;
}

const classifies: readonly Task[] = ["classification", "multilabel_classification"];

export async function classify(
  deps: Pick<AppDeps, "store" | "catalogue" | "blobs" | "exporter" | "inference">,
  input: { projectId: string; request: ClassifyRequest; signal: AbortSignal },
): Promise<Classified> {
  const { request } = input;
  const model = await resolveModel(deps, { projectId: input.projectId, name: request.model });
  if (model.tuned === null || !classifies.includes(model.tuned.task)) {
    throw new AppError(
      "unsupported_parameter",
      `"${request.model}" is not a tuned classifier: it has no labels. Tune one with task "classification", or use POST /v1/chat/completions.`,
      { param: "model" },
    );
  }
  const inputs = Array.isArray(request.input) ? request.input : [request.input];
  const texts = inputs.map((one) => {
    if (typeof one === "string") return one;
    return one.text_pair === undefined ? one.text : { text: one.text, second: one.text_pair };
  });
  return deps.inference.classify(await targetOf(deps, model), texts, input.signal);
}
