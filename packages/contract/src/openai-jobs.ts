/** Fine-tuning jobs of the OpenAI surface, with Fettle's additions: our hyperparameter names, `task` and `method.supervised.method`, `method.dpo.method`. */
import { z } from "zod";
import {
  lineSchema,
  metadataSchema,
  modelNameSchema,
  objectIdSchema,
  pageQuerySchema,
  unixTimeSchema,
} from "./openai.js";
import { hyperparametersSchema, methodSchema, taskSchema } from "./trainer.js";

const auto = z.literal("auto");
const batchSize = z.union([auto, z.number().int().min(1).max(256)]);
const multiplier = z.union([auto, z.number().positive().max(100)]);
const epochs = z.union([auto, z.number().int().min(1).max(50)]);

/** Ours, by Hugging Face's and PEFT's names; each may be left out or "auto". */
const own = hyperparametersSchema.shape;
const ownOrAuto = {
  num_train_epochs: z.union([auto, own.num_train_epochs]).optional(),
  per_device_train_batch_size: z.union([auto, own.per_device_train_batch_size]).optional(),
  gradient_accumulation_steps: z.union([auto, own.gradient_accumulation_steps]).optional(),
  learning_rate: z.union([auto, own.learning_rate]).optional(),
  lr_scheduler_type: z.union([auto, own.lr_scheduler_type]).optional(),
  warmup_ratio: z.union([auto, own.warmup_ratio]).optional(),
  weight_decay: z.union([auto, own.weight_decay]).optional(),
  max_grad_norm: z.union([auto, own.max_grad_norm]).optional(),
  label_smoothing_factor: z.union([auto, own.label_smoothing_factor]).optional(),
  dropout: z.union([auto, own.dropout]).optional(),
  max_length: z.union([auto, own.max_length]).optional(),
  lora_r: z.union([auto, own.lora_r]).optional(),
  lora_alpha: z.union([auto, own.lora_alpha]).optional(),
  lora_dropout: z.union([auto, own.lora_dropout]).optional(),
  target_modules: z.union([auto, own.target_modules]).optional(),
  trainable_layers: z.union([auto, own.trainable_layers]).optional(),
  num_virtual_tokens: z.union([auto, own.num_virtual_tokens]).optional(),
  early_stopping_patience: z.union([auto, own.early_stopping_patience]).optional(),
  eval_steps: z.union([auto, own.eval_steps]).optional(),
  sampling: z.union([auto, own.sampling]).optional(),
  class_weights: z.union([auto, own.class_weights]).optional(),
  target_mean: z.union([auto, own.target_mean]).optional(),
  target_std: z.union([auto, own.target_std]).optional(),
  beta: z.union([auto, own.beta]).optional(),
  distill_weight: z.union([auto, own.distill_weight]).optional(),
  distill_temperature: z.union([auto, own.distill_temperature]).optional(),
};

export const jobHyperparametersSchema = z
  .strictObject({
    n_epochs: epochs.optional(),
    batch_size: batchSize.optional(),
    learning_rate_multiplier: multiplier.optional(),
    ...ownOrAuto,
  })
  .meta({ id: "JobHyperparameters" });
export type JobHyperparameters = z.infer<typeof jobHyperparametersSchema>;

/** `method` says which supervised method; `task` which task. Both are inferred when absent. `teacher`: whom it learns from. */
export const supervisedMethodSchema = z.strictObject({
  hyperparameters: jobHyperparametersSchema.optional(),
  method: methodSchema.optional(),
  task: taskSchema.optional(),
  teacher: modelNameSchema.optional(),
});

/** Preference tuning; `method` says what of the model is trained. */
export const dpoMethodSchema = z.strictObject({
  hyperparameters: jobHyperparametersSchema.optional(),
  method: methodSchema.optional(),
});

export const jobMethodSchema = z.looseObject({
  type: z.enum(["supervised", "dpo", "reinforcement"]),
  supervised: supervisedMethodSchema.optional(),
  dpo: dpoMethodSchema.optional(),
});

export const integrationSchema = z.strictObject({
  type: z.literal("wandb"),
  wandb: z.strictObject({
    project: z.string().min(1).max(256),
    name: z.string().max(256).nullish(),
    entity: z.string().max(256).nullish(),
    tags: z.array(z.string().max(64)).max(64).optional(),
  }),
});

/** Unknown top-level keys are kept and told in a warning event: Azure's and other tools' extras must not break a job. */
export const createJobSchema = z
  .looseObject({
    model: modelNameSchema,
    training_file: objectIdSchema,
    validation_file: objectIdSchema.nullish(),
    suffix: lineSchema(64).min(1).nullish(),
    seed: z.number().int().min(0).max(2147483647).nullish(),
    metadata: metadataSchema.nullish(),
    integrations: z.array(integrationSchema).max(5).nullish(),
    method: jobMethodSchema.nullish(),
    hyperparameters: jobHyperparametersSchema
      .nullish()
      .describe("deprecated place; method.supervised.hyperparameters wins"),
  })
  .meta({ id: "CreateFineTuningJob" });
export type CreateJob = z.infer<typeof createJobSchema>;

export const jobStatusSchema = z.enum([
  "validating_files",
  "queued",
  "running",
  "paused",
  "succeeded",
  "failed",
  "cancelled",
]);

/** What a job shows of its hyperparameters: "auto" until resolved, then the number used. */
export const shownHyperparametersSchema = z
  .strictObject({ n_epochs: epochs, batch_size: batchSize, learning_rate_multiplier: multiplier, ...ownOrAuto })
  .meta({ id: "ShownHyperparameters" });

export const jobObjectSchema = z
  .strictObject({
    id: z.string(),
    object: z.literal("fine_tuning.job"),
    created_at: unixTimeSchema,
    model: z.string(),
    status: jobStatusSchema,
    training_file: z.string(),
    validation_file: z.string().nullable(),
    result_files: z.array(z.string()),
    fine_tuned_model: z.string().nullable(),
    finished_at: unixTimeSchema.nullable(),
    error: z.strictObject({ code: z.string(), message: z.string(), param: z.string().nullable() }).nullable(),
    trained_tokens: z.number().int().nullable(),
    seed: z.number().int(),
    organization_id: z.string(),
    hyperparameters: shownHyperparametersSchema,
    method: z.discriminatedUnion("type", [
      z.strictObject({
        type: z.literal("supervised"),
        supervised: z.strictObject({
          hyperparameters: shownHyperparametersSchema,
          method: methodSchema.optional(),
          task: taskSchema.optional(),
          teacher: z.string().optional(),
        }),
      }),
      z.strictObject({
        type: z.literal("dpo"),
        dpo: z.strictObject({ hyperparameters: shownHyperparametersSchema, method: methodSchema.optional() }),
      }),
    ]),
    integrations: z.array(integrationSchema).nullable(),
    estimated_finish: unixTimeSchema.nullable(),
    metadata: z.record(z.string(), z.string()).nullable(),
    user_provided_suffix: z.string().nullable(),
  })
  .meta({ id: "FineTuningJob" });
export type JobObject = z.infer<typeof jobObjectSchema>;

export const jobListSchema = z
  .strictObject({ object: z.literal("list"), data: z.array(jobObjectSchema), has_more: z.boolean() })
  .meta({ id: "FineTuningJobList" });

export const jobEventSchema = z
  .strictObject({
    id: z.string(),
    object: z.literal("fine_tuning.job.event"),
    created_at: unixTimeSchema,
    level: z.enum(["info", "warn", "error"]),
    message: z.string(),
    type: z.enum(["message", "metrics"]),
    data: z.record(z.string(), z.unknown()).nullable(),
  })
  .meta({ id: "FineTuningJobEvent" });
export type JobEventObject = z.infer<typeof jobEventSchema>;

export const jobEventListSchema = z
  .strictObject({ object: z.literal("list"), data: z.array(jobEventSchema), has_more: z.boolean() })
  .meta({ id: "FineTuningJobEventList" });

export const jobCheckpointSchema = z
  .strictObject({
    id: z.string(),
    object: z.literal("fine_tuning.job.checkpoint"),
    created_at: unixTimeSchema,
    fine_tuning_job_id: z.string(),
    fine_tuned_model_checkpoint: z.string(),
    step_number: z.number().int(),
    metrics: z.strictObject({
      step: z.number().optional(),
      train_loss: z.number().optional(),
      train_mean_token_accuracy: z.number().optional(),
      valid_loss: z.number().optional(),
      valid_mean_token_accuracy: z.number().optional(),
      full_valid_loss: z.number().optional(),
      full_valid_mean_token_accuracy: z.number().optional(),
    }),
  })
  .meta({ id: "FineTuningJobCheckpoint" });
export type JobCheckpointObject = z.infer<typeof jobCheckpointSchema>;

export const jobCheckpointListSchema = z
  .strictObject({
    object: z.literal("list"),
    data: z.array(jobCheckpointSchema),
    first_id: z.string().nullable(),
    last_id: z.string().nullable(),
    has_more: z.boolean(),
  })
  .meta({ id: "FineTuningJobCheckpointList" });

export const jobListQuerySchema = pageQuerySchema(20, 100);
export const checkpointListQuerySchema = pageQuerySchema(10, 100);
