/** A sweep: many runs of one model and one file, whose hyperparameters are searched. Each trial is an ordinary run. */
import { z } from "zod";
import { createRunSchema } from "./api.js";
import { objectIdSchema, pageQuerySchema, unixTimeSchema } from "./openai.js";
import { hyperparametersSchema } from "./trainer.js";

/** What may be searched: one number or word each. */
export const searchedNames = [
  "learning_rate_multiplier",
  "num_train_epochs",
  "per_device_train_batch_size",
  "gradient_accumulation_steps",
  "learning_rate",
  "lr_scheduler_type",
  "warmup_ratio",
  "weight_decay",
  "max_grad_norm",
  "label_smoothing_factor",
  "dropout",
  "max_length",
  "lora_r",
  "lora_alpha",
  "lora_dropout",
  "trainable_layers",
  "num_virtual_tokens",
  "early_stopping_patience",
  "eval_steps",
  "sampling",
  "class_weights",
  "beta",
  "distill_weight",
  "distill_temperature",
] as const;
export type SearchedName = (typeof searchedNames)[number];

const numberSchema = z.number().min(-1e9).max(1e9);
const searchedValueSchema = z.union([numberSchema, z.string().max(64), z.null()]);
export type SearchedValue = z.infer<typeof searchedValueSchema>;
const dimensionSchema = z
  .union([
    z.strictObject({ values: z.array(searchedValueSchema).min(1).max(100) }),
    z.strictObject({
      min: numberSchema,
      max: numberSchema,
      log: z.boolean().default(false).describe("even in the logarithm: each power of ten is as likely"),
      step: z.number().positive().max(1e9).optional().describe("only min, min + step, ...; a grid needs it"),
    }),
  ])
  .describe("a list of values, or a range from min to max")
  .meta({ id: "SweepDimension" });
export type Dimension = z.output<typeof dimensionSchema>;

const spaceShape = Object.fromEntries(searchedNames.map((name) => [name, dimensionSchema.optional()])) as Record<
  SearchedName,
  z.ZodOptional<typeof dimensionSchema>
>;
const spaceSchema = z.strictObject(spaceShape);
export type Space = z.output<typeof spaceSchema>;

export const searchSchema = z.enum(["grid", "random", "bayesian"]);
export type Search = z.infer<typeof searchSchema>;
export const pruningSchema = z.enum(["none", "median", "hyperband"]);
export type Pruning = z.infer<typeof pruningSchema>;

export const budgetSchema = z.strictObject({
  trials: z
    .number()
    .int()
    .min(1)
    .max(1000)
    .optional()
    .describe("configurations tried, the automatic values among them"),
  minutes: z
    .number()
    .positive()
    .max(525600)
    .optional()
    .describe("time in which at least one trial is at work, the repeats for the verdict among it"),
  money: z.number().positive().max(1e9).optional().describe("such minutes at runs.price_per_hour of fettle.yaml"),
});

export const metricSchema = z.strictObject({
  name: z
    .string()
    .max(64)
    .regex(/^[a-z][a-z0-9_]*$/, "a name of small letters, digits and _")
    .describe("valid_loss, or a metric of the task such as accuracy or f1_macro"),
  direction: z.enum(["minimize", "maximize"]),
});
export type Metric = z.infer<typeof metricSchema>;
const wantedMetricSchema = metricSchema.extend({
  direction: metricSchema.shape.direction.optional().describe("absent: losses and errors down, all else up"),
});

export const createSweepSchema = createRunSchema
  .extend({
    space: spaceSchema.optional().describe("absent: learning_rate_multiplier from 0.2 to 5"),
    search: searchSchema.default("random"),
    pruning: pruningSchema.default("none").describe("ends trials that fall behind the others"),
    budget: budgetSchema.default({}).describe("absent: 20 trials, or the whole grid"),
    metric: wantedMetricSchema.default({ name: "valid_loss" }),
    parallel: z.number().int().min(1).max(64).nullish().describe("trials at once; absent: as many as memory allows"),
    repeats: z
      .number()
      .int()
      .min(0)
      .max(10)
      .default(3)
      .describe("runs with other seeds, each of the automatic and of the best values, for the verdict"),
  })
  .meta({ id: "CreateSweep" });
export type CreateSweep = z.output<typeof createSweepSchema>;

export const trialRoleSchema = z.enum(["automatic", "search", "repeat_automatic", "repeat_best"]);
export type TrialRole = z.infer<typeof trialRoleSchema>;
const trialStatusSchema = z.enum(["waiting", "running", "paused", "succeeded", "failed", "pruned", "cancelled"]);
export type TrialStatus = z.infer<typeof trialStatusSchema>;
const valuesSchema = z.record(z.string(), searchedValueSchema);

export const trialObjectSchema = z
  .strictObject({
    number: z.number().int().min(0),
    object: z.literal("sweep.trial"),
    role: trialRoleSchema,
    status: trialStatusSchema,
    reason: z.string().nullable().describe("why it was pruned, cancelled or failed"),
    run_id: z.string(),
    seed: z.number().int(),
    values: valuesSchema.describe("of what is searched; of the automatic values once they are resolved"),
    chosen: z.string().describe("how its values came about"),
    score: z.number().nullable().describe("the metric of the model that the run keeps, its best by validation loss"),
    epochs: z.number().describe("trained when the score was measured"),
    seconds: z.number().nullable(),
    fine_tuned_model: z.string().nullable(),
  })
  .meta({ id: "SweepTrial" });
export type TrialObject = z.infer<typeof trialObjectSchema>;
export const trialListSchema = z
  .strictObject({ object: z.literal("list"), data: z.array(trialObjectSchema) })
  .meta({ id: "SweepTrialList" });

export const verdictSchema = z.strictObject({
  answer: z
    .enum(["better", "not_better", "unknown"])
    .describe("better: than the automatic values by more than chance, with 95 % confidence"),
  message: z.string(),
  pairs: z.number().int().describe("seeds with which both were trained, none of them the search's own"),
  mean_gain: z.number().nullable().describe("in the metric, positive when the best values are better"),
  interval: z.tuple([z.number(), z.number()]).nullable().describe("95 %, of the gain, by Student's t over the pairs"),
  noise: z.number().nullable().describe("standard deviation of the automatic values over seeds"),
});
export type Verdict = z.infer<typeof verdictSchema>;

const importanceSchema = z.strictObject({
  shares: z.record(z.string(), z.number()).nullable().describe("of 1, by PED-ANOVA; null: not known"),
  message: z.string(),
});
export type Importance = z.infer<typeof importanceSchema>;

export const sweepStatusSchema = z.enum(["running", "cancelling", "succeeded", "failed", "cancelled"]);
export type SweepStatus = z.infer<typeof sweepStatusSchema>;

export const sweepObjectSchema = z
  .strictObject({
    id: z.string(),
    object: z.literal("sweep"),
    created_at: unixTimeSchema,
    finished_at: unixTimeSchema.nullable(),
    status: sweepStatusSchema,
    model: z.string(),
    teacher: z.string().nullable(),
    training_file: z.string(),
    validation_file: z.string().nullable(),
    hyperparameters: z.record(z.string(), z.unknown()).describe("the same in every trial"),
    space: spaceSchema,
    search: searchSchema,
    pruning: pruningSchema,
    budget: budgetSchema,
    metric: metricSchema,
    parallel: z.number().int().nullable(),
    repeats: z.number().int(),
    seed: z.number().int(),
    metadata: z.record(z.string(), z.string()).nullable(),
    phase: z.enum(["search", "verdict", "ended"]),
    trials: z.strictObject({
      planned: z.number().int().nullable().describe("of the search; null: as many as the time allows"),
      started: z.number().int(),
      succeeded: z.number().int(),
      pruned: z.number().int(),
      failed: z.number().int(),
    }),
    minutes_used: z.number(),
    money_used: z.number().nullable().describe("null: no price per hour is known"),
    seconds_left: z.number().nullable().describe("about; null: not known yet"),
    automatic: z.strictObject({ trial: z.number().int(), score: z.number() }).nullable(),
    best: z
      .strictObject({
        trial: z.number().int(),
        run_id: z.string(),
        score: z.number(),
        values: valuesSchema,
        hyperparameters: hyperparametersSchema.nullable(),
        fine_tuned_model: z.string().nullable(),
      })
      .nullable()
      .describe("so far, while it runs"),
    verdict: verdictSchema.nullable().describe("null until the end"),
    importance: importanceSchema.nullable().describe("how much each searched value mattered; null until the end"),
    parallel_coordinates: z
      .strictObject({
        axes: z.array(
          z.strictObject({
            name: z.string(),
            log: z.boolean(),
            range: z.tuple([z.number(), z.number()]).nullable().describe("null: the axis has names"),
            values: z.array(searchedValueSchema).nullable().describe("its names in order"),
          }),
        ),
        lines: z
          .array(
            z.strictObject({
              trial: z.number().int(),
              values: z.array(searchedValueSchema).describe("one for each axis"),
              score: z.number(),
            }),
          )
          .describe("the search's trials that came to their end"),
      })
      .describe("what a plot of parallel coordinates needs"),
    error: z.strictObject({ code: z.string(), message: z.string(), param: z.string().nullable() }).nullable(),
  })
  .meta({ id: "Sweep" });
export type SweepObject = z.infer<typeof sweepObjectSchema>;
export const sweepListSchema = z
  .strictObject({ object: z.literal("list"), data: z.array(sweepObjectSchema), has_more: z.boolean() })
  .meta({ id: "SweepList" });
export const sweepListQuerySchema = pageQuerySchema(20, 100);
export const sweepParamsSchema = z.object({ sweep_id: objectIdSchema });
