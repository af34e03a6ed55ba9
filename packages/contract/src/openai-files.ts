/** Files and Uploads of the OpenAI surface. Sizes in bytes. */
import { z } from "zod";
import { lineSchema, objectIdSchema, unixTimeSchema } from "./openai.js";

export const maxFileBytes = 512 * 1024 * 1024;
export const maxUploadBytes = 8 * 1024 * 1024 * 1024;
export const maxPartBytes = 64 * 1024 * 1024;

/** Purposes a caller may give. */
export const filePurposeSchema = z.enum(["fine-tune", "assistants", "batch", "vision", "user_data", "evals"]);

export const expiresAfterSchema = z.strictObject({
  anchor: z.literal("created_at"),
  seconds: z.coerce.number().int().min(3600).max(2592000),
});

export const filenameSchema = lineSchema(255).min(1);

/** The fields of `POST /v1/files` beside the file itself, which is streamed and never held in memory. */
export const fileFormSchema = z
  .strictObject({ purpose: filePurposeSchema, expires_after: expiresAfterSchema.optional() })
  .meta({ id: "FileForm" });

export const fileObjectSchema = z
  .strictObject({
    id: z.string(),
    object: z.literal("file"),
    bytes: z.number().int().min(0),
    created_at: unixTimeSchema,
    expires_at: unixTimeSchema.optional(),
    filename: z.string(),
    purpose: z.string(),
    status: z.enum(["uploaded", "processed", "error"]),
    status_details: z.string().optional(),
  })
  .meta({ id: "File" });
export type FileObject = z.infer<typeof fileObjectSchema>;

export const fileListQuerySchema = z.strictObject({
  purpose: lineSchema(64).optional(),
  limit: z.coerce.number().int().min(1).max(10000).default(10000),
  order: z.enum(["asc", "desc"]).default("desc"),
  after: objectIdSchema.optional(),
});

export const fileListSchema = z
  .strictObject({
    object: z.literal("list"),
    data: z.array(fileObjectSchema),
    first_id: z.string().optional(),
    last_id: z.string().optional(),
    has_more: z.boolean(),
  })
  .meta({ id: "FileList" });

export const createUploadSchema = z
  .strictObject({
    filename: filenameSchema,
    purpose: filePurposeSchema,
    bytes: z.number().int().min(1).max(maxUploadBytes),
    mime_type: lineSchema(255).min(1),
    expires_after: expiresAfterSchema.optional(),
  })
  .meta({ id: "CreateUpload" });
export type CreateUpload = z.infer<typeof createUploadSchema>;

export const completeUploadSchema = z
  .strictObject({
    part_ids: z.array(objectIdSchema).min(1).max(10000),
    md5: z
      .string()
      .regex(/^[0-9a-fA-F]{32}$/, "An MD5 is 32 hexadecimal digits.")
      .optional(),
  })
  .meta({ id: "CompleteUpload" });

export const uploadObjectSchema = z
  .strictObject({
    id: z.string(),
    object: z.literal("upload"),
    bytes: z.number().int(),
    created_at: unixTimeSchema,
    expires_at: unixTimeSchema,
    filename: z.string(),
    purpose: z.string(),
    status: z.enum(["pending", "completed", "cancelled", "expired"]),
    file: fileObjectSchema.optional(),
  })
  .meta({ id: "Upload" });
export type UploadObject = z.infer<typeof uploadObjectSchema>;

export const uploadPartObjectSchema = z
  .strictObject({ id: z.string(), object: z.literal("upload.part"), created_at: unixTimeSchema, upload_id: z.string() })
  .meta({ id: "UploadPart" });
export type UploadPartObject = z.infer<typeof uploadPartObjectSchema>;
