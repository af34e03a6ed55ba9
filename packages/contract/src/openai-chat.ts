/**
 * Chat completions of the OpenAI surface. Known parameters that change nothing here are accepted and left
 * unused (`user`, `store`, `service_tier` …); known ones that would change the answer are refused in app/chat.ts.
 */
import { z } from "zod";
import { metadataSchema, modelNameSchema, unixTimeSchema } from "./openai.js";

/** The longest text one message may carry, in characters. */
export const maxContentLength = 4_000_000;
const text = z.string().max(maxContentLength);

const textPartSchema = z.strictObject({ type: z.literal("text"), text });
const partSchema = z.discriminatedUnion("type", [
  textPartSchema,
  z.strictObject({ type: z.literal("refusal"), refusal: text }),
  z.looseObject({ type: z.literal("image_url") }),
  z.looseObject({ type: z.literal("input_audio") }),
  z.looseObject({ type: z.literal("file") }),
]);
const contentSchema = z.union([text, z.array(partSchema).max(1000)]);

const toolCallSchema = z.looseObject({ id: z.string().max(256), type: z.string().max(64) });

export const requestMessageSchema = z
  .strictObject({
    role: z.enum(["system", "developer", "user", "assistant", "tool", "function"]),
    content: contentSchema.nullish(),
    name: z.string().max(256).optional(),
    refusal: text.nullish(),
    audio: z.looseObject({}).nullish(),
    annotations: z.array(z.unknown()).max(1000).optional(),
    tool_calls: z.array(toolCallSchema).max(128).optional(),
    tool_call_id: z.string().max(256).optional(),
    function_call: z.looseObject({}).nullish(),
    reasoning_content: text.nullish(),
  })
  .meta({ id: "ChatRequestMessage" });
export type RequestMessage = z.infer<typeof requestMessageSchema>;

export const stopSchema = z.union([z.string().max(1000), z.array(z.string().min(1).max(1000)).max(16)]);
export const logitBiasSchema = z
  .record(z.string().regex(/^\d{1,9}$/, "Keys are token ids."), z.number().min(-100).max(100))
  .refine((bias) => Object.keys(bias).length <= 1024, "At most 1024 tokens may be biased.");

/** Shared by chat and plain completions. */
export const samplingSchema = {
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  n: z.number().int().min(1).max(128).nullish(),
  stop: stopSchema.nullish(),
  seed: z.number().int().min(-9007199254740991).max(9007199254740991).nullish(),
  frequency_penalty: z.number().min(-2).max(2).nullish(),
  presence_penalty: z.number().min(-2).max(2).nullish(),
  logit_bias: logitBiasSchema.nullish(),
  stream: z.boolean().nullish(),
  stream_options: z
    .strictObject({ include_usage: z.boolean().optional(), include_obfuscation: z.boolean().optional() })
    .nullish(),
  user: z.string().max(512).nullish(),
};
const maxTokensSchema = z.number().int().min(1).max(1_000_000);

export const responseFormatSchema = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("text") }),
  z.strictObject({ type: z.literal("json_object") }),
  z.looseObject({ type: z.literal("json_schema") }),
]);

export const createChatCompletionSchema = z
  .strictObject({
    model: modelNameSchema,
    messages: z.array(requestMessageSchema).min(1).max(10000),
    ...samplingSchema,
    max_completion_tokens: maxTokensSchema.nullish(),
    max_tokens: maxTokensSchema.nullish(),
    logprobs: z.boolean().nullish(),
    top_logprobs: z.number().int().min(0).max(20).nullish(),
    response_format: responseFormatSchema.nullish(),
    tools: z
      .array(z.looseObject({ type: z.string().max(64) }))
      .max(128)
      .nullish(),
    tool_choice: z.union([z.string().max(64), z.looseObject({})]).nullish(),
    parallel_tool_calls: z.boolean().nullish(),
    functions: z.array(z.looseObject({})).max(128).nullish(),
    function_call: z.union([z.string().max(64), z.looseObject({})]).nullish(),
    modalities: z.array(z.string().max(32)).max(4).nullish(),
    audio: z.looseObject({}).nullish(),
    prediction: z.looseObject({}).nullish(),
    web_search_options: z.looseObject({}).nullish(),
    // accepted, without effect on the answer
    store: z.boolean().nullish(),
    metadata: metadataSchema.nullish(),
    reasoning_effort: z.string().max(32).nullish(),
    verbosity: z.string().max(32).nullish(),
    service_tier: z.string().max(32).nullish(),
    safety_identifier: z.string().max(512).nullish(),
    prompt_cache_key: z.string().max(512).nullish(),
    prompt_cache_retention: z.string().max(32).nullish(),
  })
  .meta({ id: "CreateChatCompletion" });
export type CreateChatCompletion = z.infer<typeof createChatCompletionSchema>;

export const usageSchema = z
  .strictObject({
    prompt_tokens: z.number().int(),
    completion_tokens: z.number().int(),
    total_tokens: z.number().int(),
  })
  .meta({ id: "Usage" });
export type Usage = z.infer<typeof usageSchema>;

export const tokenLogprobSchema = z
  .strictObject({
    token: z.string(),
    logprob: z.number(),
    bytes: z.array(z.number().int()).nullable(),
    top_logprobs: z.array(
      z.strictObject({ token: z.string(), logprob: z.number(), bytes: z.array(z.number().int()).nullable() }),
    ),
  })
  .meta({ id: "TokenLogprob" });
const choiceLogprobsSchema = z.strictObject({ content: z.array(tokenLogprobSchema).nullable(), refusal: z.null() });

export const finishReasonSchema = z.enum(["stop", "length"]);

export const chatCompletionSchema = z
  .strictObject({
    id: z.string(),
    object: z.literal("chat.completion"),
    created: unixTimeSchema,
    model: z.string(),
    choices: z.array(
      z.strictObject({
        index: z.number().int(),
        message: z.strictObject({ role: z.literal("assistant"), content: z.string(), refusal: z.null() }),
        logprobs: choiceLogprobsSchema.nullable(),
        finish_reason: finishReasonSchema,
      }),
    ),
    usage: usageSchema,
    system_fingerprint: z.string(),
  })
  .meta({ id: "ChatCompletion" });
export type ChatCompletion = z.infer<typeof chatCompletionSchema>;

export const chatCompletionChunkSchema = z
  .strictObject({
    id: z.string(),
    object: z.literal("chat.completion.chunk"),
    created: unixTimeSchema,
    model: z.string(),
    choices: z.array(
      z.strictObject({
        index: z.number().int(),
        delta: z.strictObject({
          role: z.literal("assistant").optional(),
          content: z.string().optional(),
          refusal: z.null().optional(),
        }),
        logprobs: choiceLogprobsSchema.nullable(),
        finish_reason: finishReasonSchema.nullable(),
      }),
    ),
    usage: usageSchema.nullable().optional(),
    system_fingerprint: z.string(),
  })
  .meta({ id: "ChatCompletionChunk" });
export type ChatCompletionChunk = z.infer<typeof chatCompletionChunkSchema>;
