/** Ends what has outlived its time: files, uploads, stored answers. Each part can be repeated at any moment. */
import { forgetFile } from "../app/files.js";
import type { Blobs, Store } from "../app/ports.js";

/** Stored answers of idempotent requests are kept this long, as OpenAI's clients retry within minutes. */
const idempotencyMs = 24 * 3_600_000;

export interface Swept {
  files: number;
  uploads: number;
  answers: number;
}

export async function sweepExpired(deps: { store: Store; blobs: Blobs }, now: number): Promise<Swept> {
  return {
    files: await expireFiles(deps, now),
    uploads: await expireUploads(deps, now),
    answers: await deps.store.idempotency.expire(now - idempotencyMs),
  };
}

/** A file that a run still reads is kept until the run has ended. */
async function expireFiles({ store, blobs }: { store: Store; blobs: Blobs }, now: number): Promise<number> {
  let expired = 0;
  for (const file of await store.files.listExpired(now)) {
    if ((await store.files.delete(file.projectId, file.id, now)) !== "deleted") continue;
    await forgetFile({ blobs }, { projectId: file.projectId, fileId: file.id });
    expired += 1;
  }
  return expired;
}

async function expireUploads({ store, blobs }: { store: Store; blobs: Blobs }, now: number): Promise<number> {
  const uploads = await store.uploads.listExpired(now);
  for (const upload of uploads) {
    // The bytes go first: a kill in between leaves the upload listed, and the next sweep ends it.
    await blobs.delete(`uploads/${upload.id}`);
    await store.uploads.setStatus(upload.projectId, upload.id, { status: "expired", fileId: null });
  }
  return uploads.length;
}
