/** What a model process says and is told: JSON lines, described at the top of trainer/src/fettle_trainer/serve.py. */
import { errorCatalogue, type ErrorCode, predictionSchema } from "@fettle/contract";
import { z } from "zod";
import type { GenerateRequest, TokenLogprob } from "../app/ports.js";

const alternative = z.object({ token: z.string(), bytes: z.array(z.number().int()), logprob: z.number() });
const tokenLogprob = alternative
  .extend({ logprob: z.number().nullable(), top: z.array(alternative) })
  .transform(
    ({ logprob, ...token }): TokenLogprob =>
      logprob === null ? { ...token, logprob: -9999, isFirst: true } : { ...token, logprob },
  );
const code = z
  .string()
  .transform((value): ErrorCode => (Object.hasOwn(errorCatalogue, value) ? (value as ErrorCode) : "inference_failed"));

const wireMessageSchema = z.discriminatedUnion("type", [
  z.object({
    type: z.literal("ready"),
    pid: z.number().int(),
    context_length: z.number().int(),
    rss_bytes: z.number(),
  }),
  z.object({ type: z.literal("fatal"), code, message: z.string() }),
  z.object({ type: z.literal("state"), rss_bytes: z.number(), adapters: z.array(z.string()) }),
  z.object({ type: z.literal("start"), id: z.string(), prompt_tokens: z.number().int() }),
  z.object({
    type: z.literal("delta"),
    id: z.string(),
    text: z.string(),
    logprobs: z.array(tokenLogprob),
  }),
  z.object({
    type: z.literal("end"),
    id: z.string(),
    finish_reason: z.enum(["stop", "length"]),
    prompt_tokens: z.number().int(),
    completion_tokens: z.number().int(),
  }),
  z.object({
    type: z.literal("scores"),
    id: z.string(),
    scores: z.array(z.array(z.object({ label: z.string(), probability: z.number() }))),
    num_tokens: z.number().int(),
  }),
  z.object({
    type: z.literal("predictions"),
    id: z.string(),
    predictions: z.array(predictionSchema),
    num_tokens: z.number().int(),
  }),
  z.object({ type: z.literal("vectors"), id: z.string(), vectors: z.array(z.string()), num_tokens: z.number().int() }),
  z.object({ type: z.literal("error"), id: z.string().nullable(), code, message: z.string() }),
  z.object({ type: z.literal("cancelled"), id: z.string() }),
]);
export type WireMessage = z.infer<typeof wireMessageSchema>;
/** A message that belongs to one request. */
export type WireAnswer = Extract<
  WireMessage,
  { type: "start" | "delta" | "end" | "scores" | "predictions" | "vectors" }
>;

/** Throws when the line is not a message: then the two sides do not speak the same language, and nothing can be trusted. */
export function parseMessage(line: string): WireMessage {
  return wireMessageSchema.parse(JSON.parse(line));
}

/** A request without its id, which the process gives it. */
export type WireRequest = { op: "generate" | "classify" | "predict" | "embed"; adapter: string | null } & Record<
  string,
  unknown
>;

export function generateLine(request: GenerateRequest, adapter: string | null): WireRequest {
  return {
    op: "generate",
    adapter,
    prompt: request.prompt,
    max_tokens: request.maxTokens,
    temperature: request.temperature,
    top_p: request.topP,
    stop: request.stop,
    seed: request.seed,
    frequency_penalty: request.frequencyPenalty,
    presence_penalty: request.presencePenalty,
    logit_bias: request.logitBias,
    logprobs: request.logprobs,
    json_mode: request.jsonMode,
    echo: request.echo,
  };
}

/** Base64 of little-endian float32. */
export function decodeVector(text: string): Float32Array {
  const bytes = Buffer.from(text, "base64");
  const vector = new Float32Array(bytes.length / 4);
  for (let index = 0; index < vector.length; index += 1) vector[index] = bytes.readFloatLE(index * 4);
  return vector;
}
