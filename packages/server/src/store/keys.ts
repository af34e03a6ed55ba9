import type { ApiKeyRecord, KeyStore } from "../app/ports.js";
import { cleanText, type Database } from "./database.js";

interface KeyRow {
  id: string;
  project_id: string;
  name: string;
  role: "admin" | "member";
  hint: string;
  created_at: number;
  expires_at: number | null;
  revoked_at: number | null;
  last_used_at: number | null;
}

const record = (row: KeyRow): ApiKeyRecord => ({
  id: row.id,
  projectId: row.project_id,
  name: row.name,
  role: row.role,
  hint: row.hint,
  createdAt: row.created_at,
  expiresAt: row.expires_at,
  revokedAt: row.revoked_at,
  lastUsedAt: row.last_used_at,
});

/** API keys. Only the SHA-256 of a secret is ever stored. */
export function keyStore(database: Database): KeyStore {
  return {
    async create(key, secretHash) {
      await database.run(
        `insert into fettle.api_keys (id, project_id, name, role, hint, secret_hash, created_at, expires_at, revoked_at, last_used_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
        [
          key.id,
          key.projectId,
          cleanText(key.name),
          key.role,
          key.hint,
          secretHash,
          key.createdAt,
          key.expiresAt,
          key.revokedAt,
          key.lastUsedAt,
        ],
      );
    },
    async findByHash(secretHash) {
      const [row] = await database.rows<KeyRow>("select * from fettle.api_keys where secret_hash = $1", [secretHash]);
      return row ? record(row) : null;
    },
    async list(projectId) {
      const rows = await database.rows<KeyRow>(
        "select * from fettle.api_keys where project_id = $1 order by created_at, id",
        [projectId],
      );
      return rows.map(record);
    },
    async revoke(projectId, id, at) {
      return (
        (await database.run(
          "update fettle.api_keys set revoked_at = $3 where project_id = $1 and id = $2 and revoked_at is null",
          [projectId, id, at],
        )) > 0
      );
    },
    async touch(id, at) {
      await database.run("update fettle.api_keys set last_used_at = greatest(last_used_at, $2) where id = $1", [
        id,
        at,
      ]);
    },
    async count() {
      const [row] = await database.rows<{ n: number }>("select count(*) as n from fettle.api_keys");
      return row?.n ?? 0;
    },
  };
}
