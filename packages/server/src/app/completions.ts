/** Plain completions: each prompt times `n`, numbered prompt by prompt as OpenAI does. */
import type { CreateCompletion } from "@fettle/contract";
import { AppError } from "../domain/error.js";
import { mustGenerate, type OpenedChat, samplingOf } from "./chat.js";
import { generateChoices } from "./chat-choices.js";
import type { AppDeps } from "./deps.js";
import { resolveModel, targetOf } from "./models.js";
import type { GenerateRequest } from "./ports.js";

/** OpenAI's default for this old route. */
const defaultMaxTokens = 16;
/** Prompts times n: more would block a model for minutes. */
const maxChoices = 128;

export async function openCompletion(
  deps: Pick<AppDeps, "store" | "catalogue" | "blobs" | "exporter" | "inference">,
  input: { projectId: string; request: CreateCompletion; signal: AbortSignal },
): Promise<OpenedChat> {
  const { request, signal } = input;
  const n = request.n ?? 1;
  if (request.best_of != null && request.best_of !== n) {
    throw new AppError(
      "unsupported_parameter",
      "`best_of` is supported only when it equals `n`. Leave it out and choose by logprobs.",
      { param: "best_of" },
    );
  }
  if (request.suffix)
    throw new AppError(
      "unsupported_parameter",
      "`suffix` is not supported: no model here was trained to fill in the middle. Leave it out.",
      { param: "suffix" },
    );
  const prompts = promptsOf(request.prompt);
  if (prompts.length * n > maxChoices) {
    throw new AppError(
      "value_out_of_range",
      `${prompts.length} prompts times n = ${n} are ${prompts.length * n} answers: expected at most ${maxChoices}. Send fewer at once.`,
      { param: "n" },
    );
  }
  const model = await resolveModel(deps, { projectId: input.projectId, name: request.model });
  mustGenerate(model);
  const target = await targetOf(deps, model);
  if (target.task === "classification") {
    throw new AppError(
      "unsupported_parameter",
      `"${request.model}" is a classifier. Use POST /api/classify or POST /v1/chat/completions.`,
      { param: "model" },
    );
  }
  const requests = prompts.flatMap((prompt, position) =>
    Array.from({ length: n }, (_, index) => generateRequest(request, { prompt, index: position * n + index })),
  );
  return {
    parts: generateChoices(
      requests.length,
      (index, own) => {
        const one = requests[index];
        if (one === undefined) throw new RangeError(`choice ${index} of ${requests.length}`);
        return deps.inference.generate(target, one, own);
      },
      signal,
    ),
  };
}

function promptsOf(prompt: CreateCompletion["prompt"]): GenerateRequest["prompt"][] {
  if (prompt == null) return [{ text: "" }];
  if (typeof prompt === "string") return [{ text: prompt }];
  if (prompt.every((item) => typeof item === "number")) return [{ tokens: prompt }];
  return prompt.map((item): GenerateRequest["prompt"] =>
    typeof item === "string" ? { text: item } : { tokens: Array.isArray(item) ? item : [item] },
  );
}

function generateRequest(
  request: CreateCompletion,
  choice: { prompt: GenerateRequest["prompt"]; index: number },
): GenerateRequest {
  return {
    ...samplingOf(request, choice.index),
    prompt: choice.prompt,
    maxTokens: request.max_tokens ?? defaultMaxTokens,
    logprobs: request.logprobs ?? null,
    jsonMode: false,
    echo: request.echo ?? false,
  };
}
