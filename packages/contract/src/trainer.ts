/**
 * What the server and the trainer say to each other. The trainer reads a `TrainSpec` (a JSON file, path in
 * argv) and appends `TrainerEvent`s, one JSON object a line, to `<output_dir>/events.jsonl`.
 * Published as JSON Schema draft-07 in docs/schemas/ by `npm run schemas`.
 */
import { z } from "zod";

export const taskSchema = z.enum([
  "chat",
  "classification",
  "seq2seq",
  "multilabel_classification",
  "regression",
  "ranking",
  "token_classification",
  "question_answering",
  "embedding",
  "preference",
  "pretraining",
]);
export const methodSchema = z.enum([
  "full",
  "lora",
  "rslora",
  "dora",
  "qlora",
  "freeze",
  "head",
  "ia3",
  "prompt",
  "prefix",
]);
export const familySchema = z.enum(["decoder", "encoder", "seq2seq"]);
export const layersSchema = z.enum(["auto", "plain", "liger", "compiled"]);
export type Task = z.infer<typeof taskSchema>;
export type Method = z.infer<typeof methodSchema>;
export type Family = z.infer<typeof familySchema>;
export type Layers = z.infer<typeof layersSchema>;

/** Every value resolved: `auto` never reaches the trainer. Names are Hugging Face's and PEFT's. */
export const hyperparametersSchema = z.strictObject({
  num_train_epochs: z.number().int().min(1).max(50),
  per_device_train_batch_size: z.number().int().min(1).max(256),
  gradient_accumulation_steps: z.number().int().min(1).max(256),
  learning_rate: z.number().positive().max(0.1),
  lr_scheduler_type: z.enum(["linear", "cosine", "constant"]),
  warmup_ratio: z.number().min(0).max(0.5),
  weight_decay: z.number().min(0).max(1),
  max_grad_norm: z.number().positive().max(100),
  label_smoothing_factor: z.number().min(0).max(0.5),
  dropout: z.number().min(0).max(0.9).nullable().describe("null keeps the model's own"),
  max_length: z.number().int().min(8).max(131072).describe("tokens per row"),
  lora_r: z.number().int().min(1).max(512),
  lora_alpha: z.number().positive().max(2048),
  lora_dropout: z.number().min(0).max(0.9),
  target_modules: z.union([z.literal("all-linear"), z.array(z.string().min(1).max(128)).min(1).max(64)]),
  trainable_layers: z.number().int().min(1).max(1000).describe("freeze: how many layers are trained, from the last"),
  num_virtual_tokens: z.number().int().min(1).max(1000).describe("prompt and prefix: what stands before each row"),
  early_stopping_patience: z.number().int().min(0).max(100).describe("evaluations without gain; 0 is off"),
  eval_steps: z.number().int().min(0).max(100000).describe("optimiser steps between evaluations; 0 is once per epoch"),
  sampling: z
    .enum(["shuffled", "balanced"])
    .describe("classification: shuffled shows each row once an epoch, balanced each class as often as the others"),
  class_weights: z
    .enum(["none", "balanced"])
    .describe(
      "classification: balanced lets every class weigh the same, however many rows it has; multilabel_classification: each label as much where it is as where it is not",
    ),
  target_mean: z.number().min(-1e30).max(1e30).describe("regression: (score - target_mean) / target_std is learnt"),
  target_std: z.number().positive().max(1e30),
  beta: z.number().positive().max(2).describe("preference: how dear leaving the starting model is"),
  distill_weight: z.number().min(0).max(1).describe("of the teacher's answers; the labels have the rest"),
  distill_temperature: z.number().min(0.1).max(100).describe("higher shows more of what the teacher thinks unlikely"),
});
export type Hyperparameters = z.infer<typeof hyperparametersSchema>;

const modelSourceSchema = z.strictObject({
  name: z.string().min(1).max(256),
  path: z.string().min(1).max(4096).describe("folder with config.json, tokenizer files and safetensors"),
  family: familySchema,
  adapter_path: z.string().max(4096).nullable().describe("a PEFT adapter over it: gone on from, or asked"),
});

export const trainSpecSchema = z.strictObject({
  version: z.literal(1),
  run_id: z.string().min(1).max(128),
  attempt: z.number().int().min(1).max(1000000),
  task: taskSchema,
  method: methodSchema,
  base_model: modelSourceSchema,
  teacher: modelSourceSchema
    .nullable()
    .optional()
    .describe("a tuned model of the same task and labels, whose answers are learnt beside the labels"),
  data: z.strictObject({
    train_path: z.string().max(4096).describe("canonical rows, see rows.ts"),
    train_sha256: z.string().length(64).describe("of the bytes of all files to train on, one after the other"),
    more_train_paths: z
      .array(z.string().max(4096))
      .max(18)
      .nullable()
      .optional()
      .describe("more rows to train on: the folds of a cross-validation, each file tokenised and cached by itself"),
    validation_path: z.string().max(4096).nullable().describe("null: nothing is held out, nothing is evaluated"),
    labels: z
      .array(z.string().max(256))
      .max(1000)
      .nullable()
      .describe("names of classes, of labels or of entities in id order"),
  }),
  output_dir: z.string().max(4096),
  hyperparameters: hyperparametersSchema,
  seed: z.number().int().min(0).max(2147483647),
  runtime: z.strictObject({
    device: z.enum(["auto", "cpu", "cuda"]),
    dtype: z.enum(["auto", "float32", "bfloat16"]),
    num_threads: z.number().int().min(1).max(256),
    parallelism: z
      .enum(["ddp", "fsdp"])
      .describe("of several ranks, when torchrun starts them: each holds the whole model, or a part of it"),
    layers: layersSchema
      .nullable()
      .optional()
      .describe(
        "what computes a model's layers: ours where they fit and else Liger's kernels where installed on a GPU (auto, null, or left out); the model's own (plain), with Liger's kernels (liger), or compiled by PyTorch (compiled)",
      ),
    checkpoint_seconds: z.number().min(0).max(86400).describe("least wall time between checkpoints"),
    checkpoint_steps: z.number().int().min(0).max(1000000).describe("also every N steps; 0 is by time alone"),
    keep_checkpoints: z.number().int().min(1).max(100),
    heartbeat_seconds: z.number().min(0.1).max(60),
    cache_dir: z
      .string()
      .max(4096)
      .nullable()
      .optional()
      .describe(
        "tokenised rows, and which layers were compared, for the runs of one project; left out or null: cache/ in output_dir",
      ),
  }),
});
export type TrainSpec = z.infer<typeof trainSpecSchema>;

const base = {
  seq: z.number().int().min(1).describe("1, 2, 3 ... within the file, over all attempts"),
  attempt: z.number().int().min(1),
  time: z.number().describe("Unix seconds"),
};

/** What a trainer is at. `tokenising` to `saving` go on in pieces, with a mark of progress before each. */
export const trainerPhaseSchema = z.enum([
  "starting",
  "loading",
  "reading",
  "tokenising",
  "training",
  "optimiser",
  "evaluating",
  "saving",
  "exporting",
  "verifying",
]);
export type TrainerPhase = z.infer<typeof trainerPhaseSchema>;

/** A row the trainer could not use (too long to keep an answer, no token to learn): counted, told, downloadable. */
export const refusedRowSchema = z.object({
  line: z.number().int(),
  rule: z.string(),
  message: z.string(),
});

/** Bytes expected at the peak, by what holds them. */
export const memoryPartsSchema = z.object({
  process: z.number().int().describe("Python and its libraries"),
  weights: z.number().int(),
  gradients: z.number().int(),
  moments: z.number().int().describe("of the optimiser"),
  activations: z.number().int().describe("of the largest micro-batch"),
  logits: z.number().int(),
  products: z.number().int().describe("prepared matrix products, and gaps"),
});
export type MemoryParts = z.infer<typeof memoryPartsSchema>;

export const trainerEventSchema = z.discriminatedUnion("type", [
  z.object({
    ...base,
    type: z.literal("started"),
    pid: z.number().int(),
    resumed_from_step: z.number().int().nullable(),
  }),
  z.object({
    ...base,
    type: z.literal("log"),
    level: z.enum(["info", "warn", "error"]),
    message: z.string(),
    data: z.record(z.string(), z.unknown()).optional(),
  }),
  z.object({
    ...base,
    type: z.literal("data"),
    num_train_rows: z.number().int(),
    num_validation_rows: z.number().int(),
    num_train_tokens: z.number().int(),
    num_label_tokens: z.number().int(),
    num_truncated: z.number().int(),
    refused: z.array(refusedRowSchema).describe("the first 1000"),
    num_refused: z.number().int(),
    total_steps: z.number().int(),
    memory: memoryPartsSchema
      .nullable()
      .optional()
      .describe("null on a GPU and on several ranks; left out by older trainers"),
  }),
  z.object({
    ...base,
    type: z.literal("step"),
    step: z.number().int().min(1),
    epoch: z.number(),
    train_loss: z.number(),
    train_mean_token_accuracy: z.number(),
    learning_rate: z.number(),
    grad_norm: z.number(),
    num_tokens: z.number().int().describe("non-pad tokens so far"),
    tokens_per_second: z.number(),
    eta_seconds: z.number().nullable(),
  }),
  z.object({
    ...base,
    type: z.literal("evaluation"),
    step: z.number().int(),
    valid_loss: z.number(),
    valid_mean_token_accuracy: z.number(),
    metrics: z.record(z.string(), z.number()),
    best: z.boolean(),
  }),
  z.object({
    ...base,
    type: z.literal("checkpoint"),
    step: z.number().int(),
    path: z.string().describe("relative to output_dir"),
    sha256: z.string(),
    seconds: z.number(),
  }),
  z.object({
    ...base,
    type: z.literal("heartbeat"),
    step: z.number().int(),
    rss_bytes: z.number().int(),
    // The last three are left out by trainers older than they are; one may outlive the server it was started by.
    phase: trainerPhaseSchema.optional(),
    idle_s: z.number().min(0).optional().describe("seconds since the last mark of progress in this phase"),
    expected_s: z
      .number()
      .min(0)
      .nullable()
      .optional()
      .describe("seconds from one mark to the next, by what pieces of this phase took so far; null: not known"),
  }),
  z.object({ ...base, type: z.literal("stopped"), reason: z.enum(["signal", "disk_full"]), step: z.number().int() }),
  z.object({
    ...base,
    type: z.literal("finished"),
    step: z.number().int(),
    best_step: z.number().int(),
    trained_tokens: z.number().int(),
    artefact_path: z.string().describe("relative to output_dir"),
    artefact_sha256: z.string(),
    peak_rss_bytes: z.number().int(),
    train_seconds: z.number(),
    early_stopped: z.boolean(),
  }),
  z.object({ ...base, type: z.literal("verified"), max_abs_diff: z.number() }),
  z.object({ ...base, type: z.literal("failed"), code: z.string(), message: z.string(), hint: z.string() }),
]);
export type TrainerEvent = z.infer<typeof trainerEventSchema>;

/** Exit codes of `python -m fettle_trainer train SPEC`. */
export const trainerExit = {
  finished: 0,
  /** one `failed` event was written: trying again gives the same */
  failed: 1,
  bad_spec: 2,
  /** SIGTERM came: checkpoint written, `stopped` event with reason `signal` */
  stopped: 75,
  /** checkpoint could not be written: `stopped` event with reason `disk_full` */
  disk_full: 74,
} as const;
