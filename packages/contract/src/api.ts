/** Fettle's own API under /api: runs, models, keys, status. Same words as the OpenAI surface, more facts, nothing rounded off. */
import { z } from "zod";
import {
  lineSchema,
  metadataSchema,
  modelNameSchema,
  objectIdSchema,
  pageQuerySchema,
  unixTimeSchema,
} from "./openai.js";
import { jobStatusSchema } from "./openai-jobs.js";
import { familySchema, hyperparametersSchema, memoryPartsSchema, methodSchema, taskSchema } from "./trainer.js";

export const createRunSchema = z
  .strictObject({
    model: modelNameSchema.describe("a base model, a tuned model, or a checkpoint of one"),
    teacher: modelNameSchema
      .nullish()
      .describe("a tuned model of the same task and labels, whose answers are learnt beside the labels"),
    training_file: objectIdSchema,
    validation_file: objectIdSchema.nullish(),
    task: taskSchema.nullish().describe("inferred from model and data when absent"),
    method: methodSchema.nullish().describe("chosen when absent"),
    hyperparameters: hyperparametersSchema
      .partial()
      .extend({ learning_rate_multiplier: z.number().positive().max(100).optional() })
      .optional()
      .describe("each value left out is chosen, with its reason as an event"),
    suffix: lineSchema(64).min(1).nullish(),
    seed: z.number().int().min(0).max(2147483647).nullish(),
    metadata: metadataSchema.nullish(),
  })
  .meta({ id: "CreateRun" });
export type CreateRun = z.infer<typeof createRunSchema>;

export const runObjectSchema = z
  .strictObject({
    id: z.string(),
    object: z.literal("run"),
    created_at: unixTimeSchema,
    status: jobStatusSchema,
    wanted: z.enum(["pause", "cancel"]).nullable().describe("the trainer is being asked to end for this reason"),
    waiting: z.string().nullable().describe("why a queued or paused run waits"),
    model: z.string(),
    base_model: z.string(),
    teacher: z.string().nullable(),
    family: familySchema,
    task: taskSchema.nullable(),
    method: methodSchema.nullable(),
    training_file: z.string(),
    validation_file: z.string().nullable(),
    hyperparameters: hyperparametersSchema.nullable().describe("null until resolved"),
    labels: z.array(z.string()).nullable(),
    estimate: z
      .strictObject({
        seconds: z.tuple([z.number(), z.number()]),
        memory_bytes: z.number(),
        tokens: z.number(),
        basis: z.string().nullable().describe("what the seconds rest on"),
      })
      .nullable(),
    seed: z.number().int(),
    attempt: z.number().int(),
    started_at: unixTimeSchema.nullable(),
    finished_at: unixTimeSchema.nullable(),
    step: z.number().int(),
    total_steps: z.number().int().nullable(),
    eta_at: unixTimeSchema.nullable(),
    trained_tokens: z.number().int().nullable(),
    memory: z
      .strictObject({
        predicted_bytes: z.number().int().nullable().describe("before the first step; null on a GPU"),
        parts: memoryPartsSchema.nullable().describe("of predicted_bytes"),
        peak_bytes: z.number().int().nullable().describe("measured; null until the trainer ends"),
      })
      .nullable()
      .describe("of the trainer's process; null until it has seen the rows"),
    fine_tuned_model: z.string().nullable(),
    result_file: z.string().nullable(),
    error: z.strictObject({ code: z.string(), message: z.string(), param: z.string().nullable() }).nullable(),
    suffix: z.string().nullable(),
    metadata: z.record(z.string(), z.string()).nullable(),
  })
  .meta({ id: "Run" });
export type RunObject = z.infer<typeof runObjectSchema>;

export const runListSchema = z
  .strictObject({ object: z.literal("list"), data: z.array(runObjectSchema), has_more: z.boolean() })
  .meta({ id: "RunList" });
export const runListQuerySchema = pageQuerySchema(20, 100);

/** `seq` grows by one from 1 within a run; it is the SSE event id, so `Last-Event-ID: 17` goes on at 18. */
export const runEventSchema = z
  .strictObject({
    id: z.string(),
    object: z.literal("run.event"),
    run_id: z.string(),
    seq: z.number().int(),
    created_at: unixTimeSchema,
    level: z.enum(["info", "warn", "error"]),
    type: z.enum(["message", "metrics"]),
    message: z.string(),
    data: z.record(z.string(), z.unknown()).nullable(),
  })
  .meta({ id: "RunEvent" });
export type RunEventObject = z.infer<typeof runEventSchema>;
export const runEventListSchema = z
  .strictObject({ object: z.literal("list"), data: z.array(runEventSchema), has_more: z.boolean() })
  .meta({ id: "RunEventList" });
export const runEventQuerySchema = z.strictObject({
  since: z.coerce
    .number()
    .int()
    .min(0)
    .max(Number.MAX_SAFE_INTEGER)
    .default(0)
    .describe("only events with a greater seq"),
  limit: z.coerce.number().int().min(1).max(1000).default(100),
});

export const modelObjectSchema = z
  .strictObject({
    name: z.string(),
    object: z.literal("fettle.model"),
    kind: z.enum(["base", "tuned"]),
    family: familySchema.nullable(),
    task: taskSchema.nullable(),
    method: methodSchema.nullable(),
    base_model: z.string().nullable(),
    run_id: z.string().nullable(),
    labels: z.array(z.string()).nullable(),
    num_parameters: z.number().nullable(),
    context_length: z.number().nullable(),
    licence: z.string().nullable(),
    source: z.enum(["bundled", "local", "hub"]).nullable(),
    ready: z.boolean().describe("on this disk; false: `fettle` fetches it when first needed"),
    created_at: unixTimeSchema.nullable(),
  })
  .meta({ id: "FettleModel" });
export type ModelObject = z.infer<typeof modelObjectSchema>;
export const modelListSchema = z
  .strictObject({ object: z.literal("list"), data: z.array(modelObjectSchema) })
  .meta({ id: "FettleModelList" });

export const exportFormatSchema = z.enum(["safetensors", "merged", "gguf", "onnx"]);
export type ExportFormat = z.infer<typeof exportFormatSchema>;
export const exportQuantizeSchema = z.enum(["f16", "q8_0", "q4_0", "int8"]);
export type ExportQuantize = z.infer<typeof exportQuantizeSchema>;
export const exportQuantizations: Record<ExportFormat, readonly ExportQuantize[]> = {
  safetensors: [],
  merged: [],
  gguf: ["f16", "q8_0", "q4_0"],
  onnx: ["int8"],
};
export const exportQuerySchema = z.strictObject({
  merged: z.enum(["true", "false"]).default("false").describe("fold an adapter into its base model"),
  format: exportFormatSchema
    .optional()
    .describe("what is written is loaded in a fresh process and compared; absent: the files as the run left them"),
  quantize: exportQuantizeSchema.optional().describe("gguf: f16, q8_0, q4_0; onnx: int8"),
  prune: z.coerce.number().min(0).lt(1).optional().describe("share of the smallest weights that become zero"),
});
/** The file of an export that tells how it was compared. */
export const exportReportName = "export.json";
const scoreSchema = z.object({
  loss: z.number(),
  accuracy: z.number(),
  metrics: z.record(z.string(), z.number()).describe("as the task has them"),
});
export const exportReportSchema = z.object({
  format: exportFormatSchema,
  quantize: exportQuantizeSchema.nullable(),
  prune: z.number(),
  sample: z.enum(["held_out", "built_in"]),
  rows: z.number().int(),
  positions: z.number().int(),
  before: scoreSchema,
  after: scoreSchema.extend({
    max_abs_diff: z.number().nullable().describe("of a logit to what was to be written, where that is exact"),
    max_abs_change: z.number().describe("of a logit to the tuned model"),
    agreement: z.number().describe("share of answers that are those of the tuned model"),
  }),
  speed: z.object({ before_ms: z.number(), after_ms: z.number(), gain: z.number(), runs: z.number().int() }).nullable(),
  vllm: z.string().nullable(),
  notes: z.array(z.string()),
});
export type ExportReport = z.infer<typeof exportReportSchema>;
/** Header of an export: whether what comes was merged. */
export const exportMergedHeader = "x-fettle-merged";
/** The last file of an export that failed after its beginning; holds an error body. */
export const exportErrorName = "fettle-error.json";

const askedTextSchema = z.string().min(1).max(1_000_000);
/** Of a model whose rows had text_pair, both texts. */
const classifyInputSchema = z.union([
  askedTextSchema,
  z.strictObject({ text: askedTextSchema, text_pair: askedTextSchema.optional() }),
]);
export const classifyRequestSchema = z
  .strictObject({
    model: modelNameSchema,
    input: z.union([classifyInputSchema, z.array(classifyInputSchema).min(1).max(2048)]),
  })
  .meta({ id: "ClassifyRequest" });
export type ClassifyRequest = z.infer<typeof classifyRequestSchema>;
export const classifyResultSchema = z
  .strictObject({
    object: z.literal("list"),
    model: z.string(),
    data: z.array(
      z.strictObject({
        index: z.number().int(),
        label: z.string(),
        probability: z.number().min(0).max(1),
        scores: z.array(z.strictObject({ label: z.string(), probability: z.number().min(0).max(1) })),
      }),
    ),
    usage: z.strictObject({ prompt_tokens: z.number().int(), total_tokens: z.number().int() }),
  })
  .meta({ id: "ClassifyResult" });
export type ClassifyResult = z.infer<typeof classifyResultSchema>;

/** A text alone, or the fields that the rows of the model's task have. */
export const predictInputSchema = z.union([
  askedTextSchema,
  z.strictObject({
    text: askedTextSchema.optional(),
    text_pair: askedTextSchema.optional().describe("regression: the second of two texts"),
    prompt: askedTextSchema.optional().describe("ranking: what text is an answer to"),
    question: askedTextSchema.optional().describe("question_answering"),
    context: askedTextSchema.optional().describe("question_answering: where the answer is looked for"),
  }),
]);
export type PredictInput = z.infer<typeof predictInputSchema>;
export const predictRequestSchema = z
  .strictObject({
    model: modelNameSchema.describe("tuned for regression, ranking, token_classification or question_answering"),
    input: z.union([predictInputSchema, z.array(predictInputSchema).min(1).max(2048)]),
  })
  .meta({ id: "PredictRequest" });
export type PredictRequest = z.infer<typeof predictRequestSchema>;
const spanFields = {
  start: z.number().int().min(0).describe("characters (Unicode code points) from 0"),
  end: z.number().int().min(0).describe("the first character after it"),
  text: z.string(),
};
/** By task: a number; the entities of a text; the answer a context holds, or null. */
export const predictionSchema = z.union([
  z.strictObject({ score: z.number().describe("regression: in the unit of the rows; ranking: higher is better") }),
  z.strictObject({
    entities: z.array(z.strictObject({ ...spanFields, label: z.string(), probability: z.number().min(0).max(1) })),
  }),
  z.strictObject({
    answer: z
      .strictObject({
        ...spanFields,
        score: z.number().describe("by how much it is likelier than no answer: the logarithm of a ratio, above 0"),
      })
      .nullable(),
  }),
]);
export type Prediction = z.infer<typeof predictionSchema>;
export const predictResultSchema = z
  .strictObject({
    object: z.literal("list"),
    model: z.string(),
    data: z.array(z.strictObject({ index: z.number().int(), prediction: predictionSchema })),
    usage: z.strictObject({ prompt_tokens: z.number().int(), total_tokens: z.number().int() }),
  })
  .meta({ id: "PredictResult" });
export type PredictResult = z.infer<typeof predictResultSchema>;

export const createKeySchema = z
  .strictObject({
    name: lineSchema(100).min(1),
    role: z.enum(["admin", "member"]).default("member"),
    expires_in_days: z.number().int().min(1).max(3650).optional(),
  })
  .meta({ id: "CreateKey" });
export const keyObjectSchema = z
  .strictObject({
    id: z.string(),
    object: z.literal("key"),
    name: z.string(),
    role: z.enum(["admin", "member"]),
    hint: z.string().describe("first and last characters of the key"),
    created_at: unixTimeSchema,
    expires_at: unixTimeSchema.nullable(),
    revoked_at: unixTimeSchema.nullable(),
    last_used_at: unixTimeSchema.nullable(),
  })
  .meta({ id: "Key" });
export type KeyObject = z.infer<typeof keyObjectSchema>;
export const createdKeySchema = keyObjectSchema
  .extend({ key: z.string().describe("the secret, shown this once") })
  .meta({ id: "CreatedKey" });
export const keyListSchema = z
  .strictObject({ object: z.literal("list"), data: z.array(keyObjectSchema) })
  .meta({ id: "KeyList" });

export const statusSchema = z
  .strictObject({
    version: z.string(),
    started_at: unixTimeSchema,
    database: z.enum(["ok", "down"]),
    models: z.array(
      z.strictObject({ base: z.string(), adapters: z.number().int(), rss_bytes: z.number(), busy: z.number().int() }),
    ),
    runs: z.strictObject({
      validating_files: z.number().int(),
      queued: z.number().int(),
      running: z.number().int(),
      paused: z.number().int(),
    }),
    disk: z.strictObject({ free_bytes: z.number(), total_bytes: z.number() }),
    memory: z.strictObject({ free_bytes: z.number(), total_bytes: z.number(), server_rss_bytes: z.number() }),
  })
  .meta({ id: "Status" });
export type StatusObject = z.infer<typeof statusSchema>;
export const healthSchema = z.strictObject({ status: z.enum(["ok", "starting"]) }).meta({ id: "Health" });
