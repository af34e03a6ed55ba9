/**
 * Chat completions. `openChat` gives the answer as parts, choice by choice; http/ makes a stream or one body of them.
 *
 * A tuned classifier answers too: its label is the text, and the label's probability is the logprob of that one token.
 */
import type { CreateChatCompletion, RequestMessage, Task } from "@fettle/contract";
import { AppError } from "../domain/error.js";
import { type ChoicePart, generateChoices } from "./chat-choices.js";
import type { AppDeps } from "./deps.js";
import { type ResolvedModel, resolveModel, targetOf } from "./models.js";
import type { GenerateChunk, GenerateRequest, InferenceTarget } from "./ports.js";

export interface OpenedChat {
  parts: AsyncIterable<ChoicePart>;
}
type ChatDeps = Pick<AppDeps, "store" | "catalogue" | "blobs" | "exporter" | "inference">;

export async function openChat(
  deps: ChatDeps,
  input: { projectId: string; request: CreateChatCompletion; signal: AbortSignal },
): Promise<OpenedChat> {
  const { request, signal } = input;
  refuseUnsupported(request);
  const model = await resolveModel(deps, { projectId: input.projectId, name: request.model });
  mustGenerate(model);
  const messages = request.messages.map(plainMessage);
  const target = await targetOf(deps, model);
  const choices = request.n ?? 1;
  if (target.task === "classification") {
    const text = lastUserText(messages);
    const topLogprobs = request.logprobs ? (request.top_logprobs ?? 0) : null;
    return {
      parts: generateChoices(choices, () => labelAsTokens(deps, { target, text, topLogprobs, signal }), signal),
    };
  }
  const prompt: GenerateRequest["prompt"] = target.task === "seq2seq" ? { text: lastUserText(messages) } : { messages };
  return {
    parts: generateChoices(
      choices,
      (index, own) => deps.inference.generate(target, generateRequest(request, { prompt, index }), own),
      signal,
    ),
  };
}

const byPredict = "Use POST /api/predict.";
/** How tuned models that write no text are asked. */
const asked: Partial<Record<Task, string>> = {
  multilabel_classification: "Use POST /api/classify.",
  regression: byPredict,
  ranking: byPredict,
  token_classification: byPredict,
  question_answering: byPredict,
  embedding: "Use POST /v1/embeddings.",
};

/** An encoder without a head has nothing to say. */
export function mustGenerate(model: ResolvedModel): void {
  const instead = model.tuned && asked[model.tuned.task];
  if (instead != null) {
    throw new AppError(
      "unsupported_parameter",
      `"${model.name}" was tuned for ${model.tuned?.task}: it cannot write text. ${instead}`,
      { param: "model" },
    );
  }
  if (model.base.family === "encoder" && model.tuned === null) {
    throw new AppError(
      "unsupported_parameter",
      `"${model.name}" is an encoder: it cannot write text. Use POST /v1/embeddings, or tune it for classification first.`,
      { param: "model" },
    );
  }
}

/** Valid OpenAI, not done here: a silent difference in the answer would be worse than a refusal. */
function refuseUnsupported(request: CreateChatCompletion): void {
  const no = (param: string, instead: string): AppError =>
    new AppError("unsupported_parameter", `\`${param}\` is not supported here. ${instead}`, { param });
  const toolsWanted = request.tool_choice !== "none" && request.function_call !== "none";
  if (request.tools?.length && toolsWanted)
    throw no(
      "tools",
      'Describe the tools in a system message and ask for JSON with response_format {"type":"json_object"}.',
    );
  if (request.functions?.length && toolsWanted)
    throw no(
      "functions",
      'Describe the functions in a system message and ask for JSON with response_format {"type":"json_object"}.',
    );
  if (request.response_format?.type === "json_schema")
    throw no("response_format.type", 'Use {"type":"json_object"} and give the schema in a message.');
  if (request.audio || request.modalities?.some((modality) => modality !== "text"))
    throw no("modalities", "Only text is answered.");
  if (request.web_search_options) throw no("web_search_options", "Put what was found into a message.");
  if (request.top_logprobs != null && !request.logprobs) {
    throw new AppError("invalid_request", "`top_logprobs` needs `logprobs`: true. Set it, or leave top_logprobs out.", {
      param: "top_logprobs",
    });
  }
}

interface PlainMessage {
  role: string;
  content: string | null;
  [key: string]: unknown;
}

/** Text parts are joined; pictures and sound are refused. */
function plainMessage(message: RequestMessage, index: number): PlainMessage {
  const { role, content, name, tool_calls, tool_call_id } = message;
  const extras = {
    ...(name !== undefined && { name }),
    ...(tool_calls !== undefined && { tool_calls }),
    ...(tool_call_id !== undefined && { tool_call_id }),
  };
  if (content === null || content === undefined) {
    if (role === "assistant") return { role, content: null, ...extras };
    throw new AppError(
      "invalid_request",
      `messages[${index}].content is missing: a ${role} message needs text. Give it, or leave the message out.`,
      { param: `messages[${index}].content` },
    );
  }
  if (typeof content === "string") return { role, content, ...extras };
  const texts = content.map((part, position) => {
    if (part.type === "text") return part.text;
    if (part.type === "refusal") return part.refusal;
    const param = `messages[${index}].content[${position}].type`;
    throw new AppError(
      "unsupported_parameter",
      `${param} is "${part.type}": these models read text only. Use {"type":"text"}.`,
      { param },
    );
  });
  return { role, content: texts.join(""), ...extras };
}

function lastUserText(messages: PlainMessage[]): string {
  const last = messages.findLast((message) => message.role === "user" && message.content !== null);
  if (last?.content == null)
    throw new AppError(
      "invalid_request",
      'No message has the role "user": this model answers the last user message. Add one.',
      { param: "messages" },
    );
  return last.content;
}

function generateRequest(
  request: CreateChatCompletion,
  choice: { prompt: GenerateRequest["prompt"]; index: number },
): GenerateRequest {
  return {
    ...samplingOf(request, choice.index),
    prompt: choice.prompt,
    maxTokens: request.max_completion_tokens ?? request.max_tokens ?? null,
    logprobs: request.logprobs ? (request.top_logprobs ?? 0) : null,
    jsonMode: request.response_format?.type === "json_object",
    echo: false,
  };
}

type Sampling = Pick<
  CreateChatCompletion,
  "temperature" | "top_p" | "stop" | "seed" | "frequency_penalty" | "presence_penalty" | "logit_bias"
>;

/** Choice `index` of a seeded request gets its own seed, so that choices differ and the whole answer repeats. */
export function samplingOf(
  request: Sampling,
  index: number,
): Omit<GenerateRequest, "prompt" | "maxTokens" | "logprobs" | "jsonMode" | "echo"> {
  const { stop, seed } = request;
  return {
    temperature: request.temperature ?? 1,
    topP: request.top_p ?? 1,
    stop: stop == null ? [] : typeof stop === "string" ? (stop === "" ? [] : [stop]) : stop,
    seed: seed == null ? null : foldSeed(seed + index),
    frequencyPenalty: request.frequency_penalty ?? 0,
    presencePenalty: request.presence_penalty ?? 0,
    logitBias: request.logit_bias ?? {},
  };
}

/** OpenAI takes any whole number; generators take 0 to 2^31 - 1. */
const foldSeed = (seed: number): number => ((seed % 0x80000000) + 0x80000000) % 0x80000000;

async function* labelAsTokens(
  deps: Pick<AppDeps, "inference">,
  input: { target: InferenceTarget; text: string; topLogprobs: number | null; signal: AbortSignal },
): AsyncIterable<GenerateChunk> {
  const { scores, numTokens } = await deps.inference.classify(input.target, [input.text], input.signal);
  const ranked = scores[0] ?? [];
  const [best] = ranked;
  if (best === undefined)
    throw new AppError(
      "inference_failed",
      "The classifier gave no label. Send the request again; if it stays, train the model anew.",
    );
  const asLogprob = ({ label, probability }: { label: string; probability: number }) => ({
    token: label,
    bytes: [...Buffer.from(label)],
    logprob: Math.max(Math.log(probability), -9999),
  });
  const top = ranked.slice(0, input.topLogprobs ?? 0).map(asLogprob);
  yield { type: "start", promptTokens: numTokens };
  yield { type: "delta", text: best.label, logprobs: input.topLogprobs === null ? [] : [{ ...asLogprob(best), top }] };
  yield { type: "end", finishReason: "stop", promptTokens: numTokens, completionTokens: 1 };
}
