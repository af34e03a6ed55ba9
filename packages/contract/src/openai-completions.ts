/** Plain completions and embeddings of the OpenAI surface. */
import { z } from "zod";
import { modelNameSchema, unixTimeSchema } from "./openai.js";
import { finishReasonSchema, maxContentLength, samplingSchema, usageSchema } from "./openai-chat.js";

const tokens = z.array(z.number().int().min(0).max(10_000_000)).min(1).max(200_000);
const text = z.string().max(maxContentLength);

export const createCompletionSchema = z
  .strictObject({
    model: modelNameSchema,
    prompt: z.union([text, z.array(text).min(1).max(128), tokens, z.array(tokens).min(1).max(128)]).nullish(),
    ...samplingSchema,
    max_tokens: z.number().int().min(0).max(1_000_000).nullish(),
    logprobs: z.number().int().min(0).max(5).nullish(),
    echo: z.boolean().nullish(),
    best_of: z.number().int().min(1).max(20).nullish(),
    suffix: z.string().max(maxContentLength).nullish(),
  })
  .meta({ id: "CreateCompletion" });
export type CreateCompletion = z.infer<typeof createCompletionSchema>;

export const completionLogprobsSchema = z.strictObject({
  tokens: z.array(z.string()),
  token_logprobs: z.array(z.number().nullable()),
  top_logprobs: z.array(z.record(z.string(), z.number()).nullable()),
  text_offset: z.array(z.number().int()),
});

/** Streamed chunks have the same shape with `finish_reason` null until the last; `usage` comes at the end when asked for. */
export const completionSchema = z
  .strictObject({
    id: z.string(),
    object: z.literal("text_completion"),
    created: unixTimeSchema,
    model: z.string(),
    choices: z.array(
      z.strictObject({
        index: z.number().int(),
        text: z.string(),
        logprobs: completionLogprobsSchema.nullable(),
        finish_reason: finishReasonSchema.nullable(),
      }),
    ),
    usage: usageSchema.nullable().optional(),
    system_fingerprint: z.string(),
  })
  .meta({ id: "Completion" });
export type Completion = z.infer<typeof completionSchema>;

export const createEmbeddingSchema = z
  .strictObject({
    model: modelNameSchema,
    input: z.union([text.min(1), z.array(text.min(1)).min(1).max(2048), tokens, z.array(tokens).min(1).max(2048)]),
    encoding_format: z
      .enum(["float", "base64"])
      .nullish()
      .describe("float when absent, as OpenAI; official clients send base64"),
    dimensions: z.number().int().min(1).max(65536).nullish(),
    user: z.string().max(512).nullish(),
  })
  .meta({ id: "CreateEmbedding" });
export type CreateEmbedding = z.infer<typeof createEmbeddingSchema>;

export const embeddingListSchema = z
  .strictObject({
    object: z.literal("list"),
    data: z.array(
      z.strictObject({
        object: z.literal("embedding"),
        index: z.number().int(),
        embedding: z.union([z.array(z.number()), z.string().describe("base64 of float32, little-endian")]),
      }),
    ),
    model: z.string(),
    usage: z.strictObject({ prompt_tokens: z.number().int(), total_tokens: z.number().int() }),
  })
  .meta({ id: "EmbeddingList" });
export type EmbeddingList = z.infer<typeof embeddingListSchema>;
