/**
 * Uploads: a file in parts, for what is too large for one request.
 *
 *   pending -> completed (all parts joined, one file made)
 *          \-> cancelled
 *          \-> expired (an hour after its creation)
 */
import { createHash } from "node:crypto";
import { type CreateUpload, maxPartBytes } from "@fettle/contract";
import { AppError } from "../domain/error.js";
import type { AppDeps } from "./deps.js";
import { createFile, keepBytes } from "./files.js";
import type { FileRecord, UploadPartRecord, UploadRecord } from "./ports.js";

const lifetimeMs = 3_600_000;
const partKey = (uploadId: string, partId: string): string => `uploads/${uploadId}/${partId}`;

export async function createUpload(
  deps: Pick<AppDeps, "store" | "clock" | "ids">,
  input: { projectId: string; request: CreateUpload },
): Promise<UploadRecord> {
  const { request } = input;
  const now = deps.clock.now();
  const upload: UploadRecord = {
    id: deps.ids.make("upload_"),
    projectId: input.projectId,
    filename: request.filename,
    purpose: request.purpose,
    bytes: request.bytes,
    mimeType: request.mime_type,
    status: "pending",
    createdAt: now,
    expiresAt: now + lifetimeMs,
    fileId: null,
  };
  await deps.store.uploads.create(upload);
  return upload;
}

interface UploadId {
  projectId: string;
  uploadId: string;
}

async function getUpload(
  deps: Pick<AppDeps, "store" | "clock">,
  { projectId, uploadId }: UploadId,
): Promise<UploadRecord> {
  const upload = await deps.store.uploads.get(projectId, uploadId);
  if (upload === null)
    throw new AppError("not_found", `No upload "${uploadId}" in this project. Create one: POST /v1/uploads.`, {
      param: "upload_id",
    });
  const expired = upload.status === "pending" && upload.expiresAt <= deps.clock.now();
  return expired ? { ...upload, status: "expired" } : upload;
}

function mustBePending(upload: UploadRecord, verb: string): void {
  if (upload.status !== "pending") {
    throw new AppError(
      "conflict",
      `Upload ${upload.id} is ${upload.status}: only a pending upload can be ${verb}. Create a new one: POST /v1/uploads.`,
      { param: "upload_id" },
    );
  }
}

/** Checked before the bytes are read, so that a refused part costs nothing. */
export async function openForPart(deps: Pick<AppDeps, "store" | "clock">, input: UploadId): Promise<void> {
  mustBePending(await getUpload(deps, input), "added to");
}

export async function addPart(
  deps: Pick<AppDeps, "store" | "blobs" | "clock" | "ids">,
  input: UploadId & { body: AsyncIterable<Uint8Array> },
): Promise<UploadPartRecord> {
  const partId = deps.ids.make("part_");
  const key = partKey(input.uploadId, partId);
  try {
    const { bytes } = await deps.blobs.put(key, input.body, { maxBytes: maxPartBytes });
    const part: UploadPartRecord = { id: partId, uploadId: input.uploadId, bytes, createdAt: deps.clock.now() };
    await deps.store.uploads.addPart(input.projectId, part);
    return part;
  } catch (error) {
    await deps.blobs.delete(key);
    throw error;
  }
}

export interface CompletedUpload {
  upload: UploadRecord;
  file: FileRecord;
}

/** Joins the parts in the order given. Completing a completed upload again gives the same file: a lost answer costs nothing. */
export async function completeUpload(
  deps: Pick<AppDeps, "store" | "blobs" | "clock" | "ids" | "background">,
  input: UploadId & { partIds: string[]; md5: string | undefined },
): Promise<CompletedUpload> {
  const upload = await getUpload(deps, input);
  if (upload.status === "completed" && upload.fileId !== null) {
    const file = await deps.store.files.get(input.projectId, upload.fileId);
    if (file !== null) return { upload, file };
  }
  mustBePending(upload, "completed");
  await checkParts(deps, upload, input.partIds);
  const md5 = createHash("md5");
  const kept = await keepBytes(deps, joined(deps, { upload, partIds: input.partIds, md5 }), upload.bytes);
  const found = md5.digest("hex");
  if (input.md5 !== undefined && input.md5.toLowerCase() !== found) {
    await deps.blobs.delete(`files/${kept.fileId}`);
    throw new AppError(
      "upload_incomplete",
      `Upload ${upload.id}: the joined parts have MD5 ${found}, you promised ${input.md5}. Check the order of part_ids, or send the damaged part again.`,
      { param: "md5" },
    );
  }
  const file = await createFile(deps, {
    projectId: input.projectId,
    kept,
    filename: upload.filename,
    purpose: upload.purpose,
    expiresAfterSeconds: null,
  });
  await deps.store.uploads.setStatus(input.projectId, upload.id, { status: "completed", fileId: file.id });
  await deps.blobs.delete(`uploads/${upload.id}`);
  return { upload: { ...upload, status: "completed", fileId: file.id }, file };
}

async function checkParts(deps: Pick<AppDeps, "store">, upload: UploadRecord, partIds: string[]): Promise<void> {
  const parts = new Map((await deps.store.uploads.parts(upload.projectId, upload.id)).map((part) => [part.id, part]));
  let total = 0;
  for (const [index, id] of partIds.entries()) {
    const part = parts.get(id);
    if (part === undefined)
      throw new AppError("upload_incomplete", `Upload ${upload.id} has no part "${id}". Send it, or leave it out.`, {
        param: `part_ids[${index}]`,
      });
    total += part.bytes;
  }
  if (new Set(partIds).size !== partIds.length) {
    throw new AppError(
      "upload_incomplete",
      `Upload ${upload.id}: a part is named twice. Name each part once, in order.`,
      { param: "part_ids" },
    );
  }
  if (total !== upload.bytes) {
    throw new AppError(
      "upload_incomplete",
      `Upload ${upload.id}: the parts have ${total} bytes together, you promised ${upload.bytes}. Send what is missing, then complete again.`,
      { param: "part_ids" },
    );
  }
}

async function* joined(
  deps: Pick<AppDeps, "blobs">,
  input: { upload: UploadRecord; partIds: string[]; md5: { update(data: Uint8Array): unknown } },
): AsyncIterable<Uint8Array> {
  for (const id of input.partIds) {
    const bytes = await deps.blobs.get(partKey(input.upload.id, id));
    if (bytes === null)
      throw new AppError(
        "upload_incomplete",
        `Upload ${input.upload.id}: the bytes of part "${id}" are gone. Send it again.`,
        { param: "part_ids" },
      );
    for await (const chunk of bytes) {
      input.md5.update(chunk);
      yield chunk;
    }
  }
}

export async function cancelUpload(
  deps: Pick<AppDeps, "store" | "blobs" | "clock">,
  input: UploadId,
): Promise<UploadRecord> {
  const upload = await getUpload(deps, input);
  if (upload.status === "cancelled") return upload;
  mustBePending(upload, "cancelled");
  await deps.store.uploads.setStatus(input.projectId, upload.id, { status: "cancelled", fileId: null });
  await deps.blobs.delete(`uploads/${upload.id}`);
  return { ...upload, status: "cancelled" };
}
