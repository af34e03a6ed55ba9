import type { DataReport, FileRecord, FileStore } from "../app/ports.js";
import { cleanText, type Database, type Sql, toJson } from "./database.js";
import { readPage } from "./page.js";

interface FileRow {
  id: string;
  project_id: string;
  filename: string;
  purpose: string;
  bytes: number;
  sha256: string;
  status: FileRecord["status"];
  status_details: string | null;
  created_at: number;
  expires_at: number | null;
  report: DataReport | null;
  deleted_at: number | null;
}

const record = (row: FileRow): FileRecord => ({
  id: row.id,
  projectId: row.project_id,
  filename: row.filename,
  purpose: row.purpose,
  bytes: row.bytes,
  sha256: row.sha256,
  status: row.status,
  statusDetails: row.status_details,
  createdAt: row.created_at,
  expiresAt: row.expires_at,
  report: row.report,
  deletedAt: row.deleted_at,
});

/** Inserts a file; a second insert of the same id does nothing, so that a repeated step is harmless. */
export async function insertFile(sql: Sql, file: FileRecord): Promise<void> {
  await sql.run(
    `insert into fettle.files (id, project_id, filename, purpose, bytes, sha256, status, status_details, created_at, expires_at, report, deleted_at)
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) on conflict (id) do nothing`,
    [
      file.id,
      file.projectId,
      cleanText(file.filename),
      cleanText(file.purpose),
      file.bytes,
      file.sha256,
      file.status,
      file.statusDetails && cleanText(file.statusDetails),
      file.createdAt,
      file.expiresAt,
      toJson(file.report),
      file.deletedAt,
    ],
  );
}

/** Data files: a row is kept after deletion (its cursor still pages), its bytes are not. */
export function fileStore(database: Database): FileStore {
  return {
    create: (file) => insertFile(database, file),
    async get(projectId, id) {
      const [row] = await database.rows<FileRow>(
        "select * from fettle.files where project_id = $1 and id = $2 and deleted_at is null",
        [projectId, id],
      );
      return row ? record(row) : null;
    },
    list(projectId, page) {
      const byPurpose = page.purpose !== undefined;
      const where = byPurpose ? "deleted_at is null and purpose = $2" : "deleted_at is null";
      return readPage<FileRow, FileRecord>(
        database,
        {
          table: "fettle.files",
          scope: "project_id = $1",
          where,
          values: byPurpose ? [projectId, page.purpose] : [projectId],
          record,
        },
        page,
      );
    },
    async setProcessed(projectId, id, outcome) {
      await database.run(
        "update fettle.files set status = $3, status_details = $4, report = $5 where project_id = $1 and id = $2",
        [
          projectId,
          id,
          outcome.status,
          outcome.statusDetails && cleanText(outcome.statusDetails),
          toJson(outcome.report),
        ],
      );
    },
    delete: (projectId, id, at) => database.transaction((sql) => deleteFile(sql, { projectId, id, at })),
    async listUnprocessed() {
      return (
        await database.rows<FileRow>(
          "select * from fettle.files where status = 'uploaded' and deleted_at is null order by position",
        )
      ).map(record);
    },
    async listExpired(now) {
      return (
        await database.rows<FileRow>(
          "select * from fettle.files where expires_at <= $1 and deleted_at is null order by expires_at limit 1000",
          [now],
        )
      ).map(record);
    },
  };
}

/** The row lock meets the one of RunStore.create: either the run sees the deletion, or the deletion sees the run. */
async function deleteFile(
  sql: Sql,
  file: { projectId: string; id: string; at: number },
): Promise<"deleted" | "not_found" | "in_use"> {
  const found = await sql.rows(
    "select 1 from fettle.files where project_id = $1 and id = $2 and deleted_at is null for update",
    [file.projectId, file.id],
  );
  if (found.length === 0) return "not_found";
  const readers = await sql.rows(
    `select 1 from fettle.runs where project_id = $1 and (training_file = $2 or validation_file = $2)
     and status not in ('succeeded', 'failed', 'cancelled') limit 1`,
    [file.projectId, file.id],
  );
  if (readers.length > 0) return "in_use";
  await sql.run("update fettle.files set deleted_at = $2 where id = $1", [file.id, file.at]);
  return "deleted";
}
