import type { UploadPartRecord, UploadRecord, UploadStore } from "../app/ports.js";
import { AppError } from "../domain/error.js";
import { cleanText, type Database, type Sql } from "./database.js";

interface UploadRow {
  id: string;
  project_id: string;
  filename: string;
  purpose: string;
  bytes: number;
  mime_type: string;
  status: UploadRecord["status"];
  created_at: number;
  expires_at: number;
  file_id: string | null;
}
interface PartRow {
  id: string;
  upload_id: string;
  bytes: number;
  created_at: number;
}

const record = (row: UploadRow): UploadRecord => ({
  id: row.id,
  projectId: row.project_id,
  filename: row.filename,
  purpose: row.purpose,
  bytes: row.bytes,
  mimeType: row.mime_type,
  status: row.status,
  createdAt: row.created_at,
  expiresAt: row.expires_at,
  fileId: row.file_id,
});
const partRecord = (row: PartRow): UploadPartRecord => ({
  id: row.id,
  uploadId: row.upload_id,
  bytes: row.bytes,
  createdAt: row.created_at,
});

/** Uploads in parts. Only a pending upload changes; anything else is a `conflict`. */
export function uploadStore(database: Database): UploadStore {
  return {
    async create(upload) {
      await database.run(
        `insert into fettle.uploads (id, project_id, filename, purpose, bytes, mime_type, status, created_at, expires_at, file_id)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
        [
          upload.id,
          upload.projectId,
          cleanText(upload.filename),
          cleanText(upload.purpose),
          upload.bytes,
          cleanText(upload.mimeType),
          upload.status,
          upload.createdAt,
          upload.expiresAt,
          upload.fileId,
        ],
      );
    },
    async get(projectId, id) {
      const [row] = await database.rows<UploadRow>("select * from fettle.uploads where project_id = $1 and id = $2", [
        projectId,
        id,
      ]);
      return row ? record(row) : null;
    },
    async addPart(projectId, part) {
      const added = await database.run(
        `insert into fettle.upload_parts (id, upload_id, bytes, created_at)
         select $3, id, $4, $5 from fettle.uploads where project_id = $1 and id = $2 and status = 'pending' for share`,
        [projectId, part.uploadId, part.id, part.bytes, part.createdAt],
      );
      if (added === 0) throw await notPending(database, projectId, part.uploadId);
    },
    async parts(projectId, uploadId) {
      const rows = await database.rows<PartRow>(
        `select parts.* from fettle.upload_parts parts join fettle.uploads uploads on uploads.id = parts.upload_id
         where uploads.project_id = $1 and uploads.id = $2 order by parts.position`,
        [projectId, uploadId],
      );
      return rows.map(partRecord);
    },
    async setStatus(projectId, id, { status, fileId }) {
      const changed = await database.run(
        "update fettle.uploads set status = $3, file_id = $4 where project_id = $1 and id = $2 and status = 'pending'",
        [projectId, id, status, fileId],
      );
      if (changed === 0) throw await notPending(database, projectId, id);
    },
    async listExpired(now) {
      return (
        await database.rows<UploadRow>(
          "select * from fettle.uploads where status = 'pending' and expires_at <= $1 order by expires_at limit 1000",
          [now],
        )
      ).map(record);
    },
  };
}

async function notPending(sql: Sql, projectId: string, id: string): Promise<AppError> {
  const [row] = await sql.rows<{ status: string }>(
    "select status from fettle.uploads where project_id = $1 and id = $2",
    [projectId, id],
  );
  if (!row) return new AppError("not_found", `No upload ${id} in this project.`);
  return new AppError(
    "conflict",
    `Upload ${id} is ${row.status}; only a pending upload takes parts or can be completed or cancelled. Make a new upload.`,
  );
}
