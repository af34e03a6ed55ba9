/**
 * The OpenAI surface, what all its parts share: ids, lists, the error body, models.
 * Times are Unix seconds. Optional keys are left out, never null, unless the schema says nullable.
 */
import { z } from "zod";

export const unixTimeSchema = z.number().int().min(0);
/** One line of text without control characters: a database column and a log line can hold it. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is refused
const plain = /^[^\u0000-\u001f\u007f]*$/;
export const lineSchema = (maxLength: number) =>
  z.string().max(maxLength).regex(plain, "text without control characters");

export const objectIdSchema = lineSchema(256).min(1);
export const modelNameSchema = lineSchema(512).min(1);

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
  .record(
    lineSchema(64).min(1),
    z
      .string()
      .max(512)
      .regex(/^[^\0]*$/, "text without NUL"),
  )
  .refine((pairs) => Object.keys(pairs).length <= 16, "At most 16 pairs are allowed.");

export const deletedSchema = z
  .strictObject({ id: z.string(), object: z.string(), deleted: z.literal(true) })
  .meta({ id: "Deleted" });

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
