/** Numbers, entities and answers of models tuned for them. What an input is made of follows from the model's task. */
import type { Prediction, PredictInput, PredictRequest, Task } from "@fettle/contract";
import { AppError } from "../domain/error.js";
import type { AppDeps } from "./deps.js";
import { resolveModel, targetOf } from "./models.js";
import type { AskedText } from "./ports.js";

export interface Predicted {
  /** One an input, in their order. */
  predictions: Prediction[];
  numTokens: number;
}

type Field = keyof Exclude<PredictInput, string>;

/** The fields of an input as the rows of each task have them, in the order the model reads them. */
const forms: Partial<Record<Task, readonly (readonly [Field] | readonly [Field, Field])[]>> = {
  regression: [["text"], ["text", "text_pair"]],
  ranking: [["text"], ["prompt", "text"]],
  token_classification: [["text"]],
  question_answering: [["question", "context"]],
};

export async function predict(
  deps: Pick<AppDeps, "store" | "catalogue" | "blobs" | "exporter" | "inference">,
  input: { projectId: string; request: PredictRequest; signal: AbortSignal },
): Promise<Predicted> {
  const { request } = input;
  const model = await resolveModel(deps, { projectId: input.projectId, name: request.model });
  const task = model.tuned?.task;
  if (task === undefined || forms[task] === undefined) {
    throw new AppError(
      "unsupported_parameter",
      `"${request.model}" ${task === undefined ? "is a base model" : `was tuned for ${task}`}: expected a model tuned for ${Object.keys(forms).join(", ")}. Labels come from POST /api/classify, texts from POST /v1/chat/completions, vectors from POST /v1/embeddings.`,
      { param: "model" },
    );
  }
  const inputs = Array.isArray(request.input) ? request.input : [request.input];
  const asked = inputs.map((one, index) =>
    askedOf(one, { task, param: Array.isArray(request.input) ? `input[${index}]` : "input" }),
  );
  return deps.inference.predict(await targetOf(deps, model), asked, input.signal);
}

function askedOf(given: PredictInput, { task, param }: { task: Task; param: string }): AskedText {
  const fields = typeof given === "string" ? { text: given } : given;
  const names = Object.keys(fields).sort();
  const possible = forms[task] ?? [];
  const form = possible.find((one) => one.length === names.length && one.every((field) => names.includes(field)));
  if (form === undefined) {
    const expected = possible.map((one) => one.join(" and ")).join(", or ");
    throw new AppError(
      "invalid_request",
      `${param} has ${names.length === 0 ? "no field" : names.join(" and ")}: a model tuned for ${task} expects ${expected}. Send the fields its rows had.`,
      { param },
    );
  }
  const [text = "", second] = form.map((field) => fields[field] ?? "");
  return second === undefined ? { text } : { text, second };
}
