import type { IdempotencyStore } from "../app/ports.js";
import { cleanText, type Database } from "./database.js";

interface ClaimRow {
  body_hash: string;
  created_at: number;
  status: number | null;
  body: string | null;
}

/** A claim this old without an answer belongs to a server that died at work: the next request takes it over. */
const abandonedAfterMs = 5 * 60_000;

export function idempotencyStore(database: Database): IdempotencyStore {
  return {
    async begin(projectId, key, { bodyHash, now }) {
      // Insert, or take over a claim that was abandoned by the same request; both atomic.
      const claimed = await database.run(
        `insert into fettle.idempotency as claim (project_id, key, body_hash, created_at) values ($1, $2, $3, $4)
         on conflict (project_id, key) do update set created_at = $4
         where claim.status is null and claim.body_hash = $3 and claim.created_at < $5`,
        [projectId, cleanText(key), bodyHash, now, now - abandonedAfterMs],
      );
      if (claimed > 0) return { state: "new" };
      const [row] = await database.rows<ClaimRow>(
        "select body_hash, created_at, status, body from fettle.idempotency where project_id = $1 and key = $2",
        [projectId, cleanText(key)],
      );
      // Forgotten between the two statements: the first request failed just now, its client may try again.
      if (!row) return { state: "busy" };
      if (row.body_hash !== bodyHash) return { state: "mismatch" };
      if (row.status === null || row.body === null) return { state: "busy" };
      return { state: "replay", status: row.status, body: row.body };
    },
    async finish(projectId, key, answer) {
      await database.run("update fettle.idempotency set status = $3, body = $4 where project_id = $1 and key = $2", [
        projectId,
        cleanText(key),
        answer.status,
        cleanText(answer.body),
      ]);
    },
    async forget(projectId, key) {
      await database.run("delete from fettle.idempotency where project_id = $1 and key = $2 and status is null", [
        projectId,
        cleanText(key),
      ]);
    },
    expire: (before) => database.run("delete from fettle.idempotency where created_at < $1", [before]),
  };
}
