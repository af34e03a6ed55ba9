/**
 * Files: bytes come in before we know the form's other fields (either order is allowed), so taking a file has two
 * halves: `keepBytes` streams them to a blob under a fresh id, `createFile` makes the record or drops the blob.
 */
import { maxFileBytes } from "@fettle/contract";
import { AppError } from "../domain/error.js";
import type { AppDeps } from "./deps.js";
import type { FileRecord, Page, PageRequest } from "./ports.js";

export interface KeptBytes {
  fileId: string;
  bytes: number;
  sha256: string;
}

export const originalKey = (fileId: string): string => `files/${fileId}/original`;

/** Throws `body_too_large` as soon as the limit is passed; nothing stays on disk then. */
export async function keepBytes(
  deps: Pick<AppDeps, "blobs" | "ids">,
  body: AsyncIterable<Uint8Array>,
  maxBytes: number = maxFileBytes,
): Promise<KeptBytes> {
  const fileId = deps.ids.make("file-");
  try {
    const kept = await deps.blobs.put(originalKey(fileId), body, { maxBytes });
    return { fileId, ...kept };
  } catch (error) {
    await dropBytes(deps, fileId);
    throw error;
  }
}

export async function dropBytes(deps: Pick<AppDeps, "blobs">, fileId: string): Promise<void> {
  await deps.blobs.delete(`files/${fileId}`);
}

export interface NewFile {
  projectId: string;
  kept: KeptBytes;
  filename: string;
  purpose: string;
  expiresAfterSeconds: number | null;
}

/** A `fine-tune` file is read and checked in the background; any other is ready at once. */
export async function createFile(
  deps: Pick<AppDeps, "store" | "blobs" | "clock" | "background">,
  input: NewFile,
): Promise<FileRecord> {
  const { kept, projectId } = input;
  if (kept.bytes === 0) {
    await dropBytes(deps, kept.fileId);
    throw new AppError(
      "file_empty",
      `The file "${input.filename}" has 0 bytes: expected at least one row. Check the path you upload from.`,
      { param: "file" },
    );
  }
  const now = deps.clock.now();
  const training = input.purpose === "fine-tune";
  const file: FileRecord = {
    id: kept.fileId,
    projectId,
    filename: input.filename,
    purpose: input.purpose,
    bytes: kept.bytes,
    sha256: kept.sha256,
    status: training ? "uploaded" : "processed",
    statusDetails: null,
    createdAt: now,
    expiresAt: input.expiresAfterSeconds === null ? null : now + input.expiresAfterSeconds * 1000,
    report: null,
    deletedAt: null,
  };
  try {
    await deps.store.files.create(file);
  } catch (error) {
    await dropBytes(deps, kept.fileId);
    throw error;
  }
  if (training) await deps.background.processFile(projectId, file.id);
  return file;
}

/** The file, or the same `not_found` for a foreign, deleted or invented id. */
export async function getFile(
  deps: Pick<AppDeps, "store">,
  input: { projectId: string; fileId: string },
): Promise<FileRecord> {
  const file = await deps.store.files.get(input.projectId, input.fileId);
  if (file === null || file.deletedAt !== null) throw noSuchFile(input.fileId, "file_id");
  return file;
}

export function noSuchFile(fileId: string, param: string): AppError {
  return new AppError(
    "not_found",
    `No file "${fileId}" in this project. List the files to see their ids: GET /v1/files.`,
    { param },
  );
}

export async function listFiles(
  deps: Pick<AppDeps, "store">,
  input: PageRequest & { projectId: string; purpose?: string | undefined },
): Promise<Page<FileRecord>> {
  const { projectId, ...page } = input;
  return deps.store.files.list(projectId, page);
}

/** The record goes first, in one transaction with the check that no run reads it; the bytes after it. */
export async function deleteFile(
  deps: Pick<AppDeps, "store" | "blobs" | "clock">,
  input: { projectId: string; fileId: string },
): Promise<void> {
  const outcome = await deps.store.files.delete(input.projectId, input.fileId, deps.clock.now());
  if (outcome === "not_found") throw noSuchFile(input.fileId, "file_id");
  if (outcome === "in_use") {
    throw new AppError(
      "file_in_use",
      `File "${input.fileId}" is read by a run that has not ended. Cancel the run, or wait for its end, then delete it.`,
      { param: "file_id" },
    );
  }
  await forgetFile(deps, input);
}

/**
 * Rows as tokens, which runs of one project share and no other project sees. They are as private as the file they
 * were made of: it takes them along when it is deleted.
 */
export const tokensKey = (projectId: string): string => `projects/${projectId}/tokens`;

/** What was made of a deleted file goes with it: its rows, and as tokens those of the whole project, made anew. */
export async function forgetFile(
  { blobs }: Pick<AppDeps, "blobs">,
  { projectId, fileId }: { projectId: string; fileId: string },
): Promise<void> {
  await blobs.delete(`files/${fileId}`);
  await blobs.delete(tokensKey(projectId));
}

export interface FileContent {
  file: FileRecord;
  bytes: AsyncIterable<Uint8Array>;
}

export async function readFile(
  deps: Pick<AppDeps, "store" | "blobs">,
  input: { projectId: string; fileId: string },
): Promise<FileContent> {
  const file = await getFile(deps, input);
  return { file, bytes: await bytesOf(deps, originalKey(file.id), file.id) };
}

/** Every fault of a data file, one JSON object a line; empty when there is none. */
export async function readFaults(
  deps: Pick<AppDeps, "store" | "blobs">,
  input: { projectId: string; fileId: string },
): Promise<FileContent> {
  const file = await getFile(deps, input);
  const bytes = await deps.blobs.get(`files/${file.id}/faults.jsonl`);
  return { file, bytes: bytes ?? nothing() };
}

async function bytesOf(deps: Pick<AppDeps, "blobs">, key: string, fileId: string): Promise<AsyncIterable<Uint8Array>> {
  const bytes = await deps.blobs.get(key);
  if (bytes === null) throw noSuchFile(fileId, "file_id");
  return bytes;
}

async function* nothing(): AsyncIterable<Uint8Array> {}
