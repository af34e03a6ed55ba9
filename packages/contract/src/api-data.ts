/** Data files as Fettle sees them: what reading found, fault by fault. */
import { z } from "zod";
import { objectIdSchema, unixTimeSchema } from "./openai.js";
import { rowKindSchema } from "./rows.js";

export const faultSchema = z
  .strictObject({
    line: z.number().int().optional(),
    column: z.number().int().optional(),
    path: z.string().optional(),
    rule: z.string(),
    message: z.string(),
    fix: z.string(),
  })
  .meta({ id: "Fault" });

export const dataReportSchema = z
  .strictObject({
    format: z.enum(["jsonl", "json-array", "csv"]),
    kind: rowKindSchema.nullable(),
    num_rows: z.number().int(),
    num_usable: z.number().int(),
    num_faults: z.number().int(),
    faults: z.array(faultSchema).describe("the first 100; all of them: /api/data/{id}/faults"),
    notices: z.array(z.string()),
    labels: z.record(z.string(), z.number().int()).nullable(),
    rows_sha256: z.string().nullable(),
  })
  .meta({ id: "DataReport" });

export const dataObjectSchema = z
  .strictObject({
    id: z.string(),
    object: z.literal("data"),
    filename: z.string(),
    purpose: z.string(),
    bytes: z.number().int(),
    sha256: z.string(),
    status: z.enum(["uploaded", "processed", "error"]),
    status_details: z.string().nullable(),
    created_at: unixTimeSchema,
    expires_at: unixTimeSchema.nullable(),
    report: dataReportSchema.nullable().describe("null until read"),
  })
  .meta({ id: "Data" });
export type DataObject = z.infer<typeof dataObjectSchema>;

export const dataListSchema = z
  .strictObject({ object: z.literal("list"), data: z.array(dataObjectSchema), has_more: z.boolean() })
  .meta({ id: "DataList" });
export const dataListQuerySchema = z.strictObject({
  after: objectIdSchema.optional(),
  limit: z.coerce.number().int().min(1).max(1000).default(100),
});
