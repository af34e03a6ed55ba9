/** A cross-validation: one run a fold of the rows, each judged by the fold it has not seen. */
import { z } from "zod";
import { createRunSchema } from "./api.js";
import { objectIdSchema, pageQuerySchema, unixTimeSchema } from "./openai.js";
import { budgetSchema, sweepStatusSchema, trialObjectSchema } from "./sweeps.js";

const budgetOfFoldsSchema = budgetSchema.omit({ trials: true });

export const createCrossValidationSchema = createRunSchema
  .omit({ validation_file: true })
  .extend({
    folds: z.number().int().min(2).max(20).default(5).describe("parts of the rows; each is held out by one run"),
    parallel: z.number().int().min(1).max(64).nullish().describe("folds at once; absent: as many as memory allows"),
    budget: budgetOfFoldsSchema.default({}).describe("absent: as long as it takes"),
  })
  .meta({ id: "CreateCrossValidation" });
export type CreateCrossValidation = z.output<typeof createCrossValidationSchema>;

const measureSchema = z
  .strictObject({
    folds: z.number().int().describe("that it was measured on"),
    mean: z.number(),
    std: z.number().nullable().describe("over the folds; null: of one alone"),
    interval: z
      .tuple([z.number(), z.number()])
      .nullable()
      .describe("95 %, of the mean, by Student's t over the folds; approximate, as folds share training rows"),
  })
  .meta({ id: "FoldMeasure" });

export const foldObjectSchema = z
  .strictObject({
    fold: z.number().int().min(1),
    object: z.literal("cross_validation.fold"),
    status: trialObjectSchema.shape.status.exclude(["pruned"]),
    reason: z.string().nullable().describe("why it failed, was cancelled or refused"),
    run_id: z.string(),
    metrics: z
      .record(z.string(), z.number())
      .nullable()
      .describe("of the model that the run keeps, on the rows of this fold; null until its end"),
    seconds: z.number().nullable(),
    fine_tuned_model: z.string().nullable(),
  })
  .meta({ id: "CrossValidationFold" });
export type FoldObject = z.infer<typeof foldObjectSchema>;

export const foldsResultSchema = z.strictObject({
  message: z.string(),
  metric: z.string().describe("that of the task; of a task without one valid_loss"),
  metrics: z.record(z.string(), measureSchema).describe("every metric that the runs measure, over the folds"),
});
export type FoldsResult = z.infer<typeof foldsResultSchema>;

export const crossValidationObjectSchema = z
  .strictObject({
    id: z.string(),
    object: z.literal("cross_validation"),
    created_at: unixTimeSchema,
    finished_at: unixTimeSchema.nullable(),
    status: sweepStatusSchema,
    model: z.string(),
    teacher: z.string().nullable(),
    training_file: z.string(),
    hyperparameters: z.record(z.string(), z.unknown()).describe("the same in every fold"),
    folds: z.number().int(),
    parallel: z.number().int().nullable(),
    budget: budgetOfFoldsSchema,
    seed: z.number().int().describe("of the folds and of each run"),
    metadata: z.record(z.string(), z.string()).nullable(),
    warnings: z.array(z.string()).describe("what makes the folds less alike than they should be"),
    runs: z.array(foldObjectSchema).describe("those begun, in the order of their folds"),
    minutes_used: z.number(),
    money_used: z.number().nullable().describe("null: no price per hour is known"),
    seconds_left: z.number().nullable().describe("about; null: not known yet"),
    result: foldsResultSchema.nullable().describe("so far, while it runs; null until one fold has ended"),
    error: z.strictObject({ code: z.string(), message: z.string(), param: z.string().nullable() }).nullable(),
  })
  .meta({ id: "CrossValidation" });
export type CrossValidationObject = z.infer<typeof crossValidationObjectSchema>;
export const crossValidationListSchema = z
  .strictObject({ object: z.literal("list"), data: z.array(crossValidationObjectSchema), has_more: z.boolean() })
  .meta({ id: "CrossValidationList" });
export const crossValidationListQuerySchema = pageQuerySchema(20, 100);
export const crossValidationParamsSchema = z.object({ cross_validation_id: objectIdSchema });
