/**
 * The OpenAI surface, what all its parts share: ids, lists, the error body, models.
 * Times are Unix seconds. Optional keys are left out, never null, unless the schema says nullable.
 */
import { z } from "zod";

export const unixTimeSchema = z.number().int().min(0);
export const objectIdSchema = z.string().min(1).max(256);
export const modelNameSchema = z.string().min(1).max(512);

export const errorBodySchema = z
  .strictObject({
    error: z.strictObject({
      message: z.string(),
      type: z.string(),
      param: z.string().nullable(),
      code: z.string().nullable(),
      request_id: z.string().optional(),
      faults: z
        .array(
          z.strictObject({
            line: z.number().int().optional(),
            column: z.number().int().optional(),
            path: z.string().optional(),
            rule: z.string(),
            message: z.string(),
            fix: z.string(),
          }),
        )
        .optional(),
    }),
  })
  .meta({ id: "ErrorBody" });
export type ErrorBody = z.infer<typeof errorBodySchema>;

/** Query of a list that pages by the last item's id. */
export const pageQuerySchema = (defaultLimit: number, maxLimit: number) =>
  z.strictObject({
    after: objectIdSchema.optional(),
    limit: z.coerce.number().int().min(1).max(maxLimit).default(defaultLimit),
  });

/** Up to 16 pairs, as OpenAI has them. */
export const metadataSchema = z
  .record(z.string().min(1).max(64), z.string().max(512))
  .refine((pairs) => Object.keys(pairs).length <= 16, "At most 16 pairs are allowed.");

export const deletedSchema = z.strictObject({ id: z.string(), object: z.string(), deleted: z.literal(true) }).meta({ id: "Deleted" });

export const openaiModelSchema = z
  .strictObject({
    id: z.string(),
    object: z.literal("model"),
    created: unixTimeSchema,
    owned_by: z.string(),
    shutdown_date: z.string().nullable().optional(),
  })
  .meta({ id: "Model" });
export type OpenAIModel = z.infer<typeof openaiModelSchema>;

export const openaiModelListSchema = z
  .strictObject({ object: z.literal("list"), data: z.array(openaiModelSchema) })
  .meta({ id: "ModelList" });
