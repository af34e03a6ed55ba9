/** The event log of a run: appended once per key, numbered without a gap. */
import type { NewRunEvent, Page } from "../app/ports.js";
import type { RunEvent } from "../domain/job.js";
import type { Evaluation } from "../domain/sweep.js";
import { cleanText, type Sql, toJson } from "./database.js";

interface EventRow {
  id: string;
  run_id: string;
  seq: number;
  created_at: number;
  level: RunEvent["level"];
  type: RunEvent["type"];
  message: string;
  data: Record<string, unknown> | null;
}

const record = (row: EventRow): RunEvent => ({
  id: row.id,
  runId: row.run_id,
  seq: row.seq,
  createdAt: row.created_at,
  level: row.level,
  type: row.type,
  message: row.message,
  data: row.data,
});

/** Appends what is not there yet. The caller holds the lock of the run's row (or has just inserted it). */
export async function appendEvents(sql: Sql, runId: string, events: readonly NewRunEvent[]): Promise<void> {
  if (events.length === 0) return;
  const known = await sql.rows<{ key: string }>(
    "select key from fettle.run_events where run_id = $1 and key = any($2)",
    [runId, events.map((event) => event.key)],
  );
  const seen = new Set(known.map((row) => row.key));
  const fresh = events.filter((event) => !seen.has(event.key) && seen.add(event.key));
  if (fresh.length === 0) return;
  const [counter] = await sql.rows<{ last_seq: number }>(
    "update fettle.runs set last_seq = last_seq + $2, updated_at = clock_timestamp() where id = $1 returning last_seq",
    [runId, fresh.length],
  );
  const first = (counter?.last_seq ?? fresh.length) - fresh.length + 1;
  await sql.run(
    `insert into fettle.run_events (run_id, seq, id, key, created_at, level, type, message, data)
     select $1, * from unnest($2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::text[], $8::text[], $9::text[]::json[])`,
    [
      runId,
      fresh.map((_, index) => first + index),
      fresh.map((event) => event.id),
      fresh.map((event) => event.key),
      fresh.map((event) => event.createdAt),
      fresh.map((event) => event.level),
      fresh.map((event) => event.type),
      fresh.map((event) => cleanText(event.message)),
      fresh.map((event) => toJson(event.data)),
    ],
  );
}

interface EventsRequest {
  projectId: string;
  runId: string;
  /** Id of the last event the client has, in the direction of `order`. */
  after?: string | undefined;
  /** Only events with a greater `seq`. */
  sinceSeq?: number | undefined;
  limit: number;
  order: "asc" | "desc";
}

export async function readEvents(sql: Sql, request: EventsRequest): Promise<Page<RunEvent>> {
  const values: unknown[] = [request.projectId, request.runId, request.limit + 1, request.sinceSeq ?? 0];
  const ascending = request.order === "asc";
  let after = "";
  if (request.after) {
    values.push(request.after);
    after = `and events.seq ${ascending ? ">" : "<"} (select seq from fettle.run_events where id = $5 and run_id = $2)`;
  }
  const rows = await sql.rows<EventRow>(
    `select events.* from fettle.run_events events join fettle.runs runs on runs.id = events.run_id
     where runs.project_id = $1 and events.run_id = $2 and events.seq > $4 ${after}
     order by events.seq ${ascending ? "asc" : "desc"} limit $3`,
    values,
  );
  return { data: rows.slice(0, request.limit).map(record), hasMore: rows.length > request.limit };
}

/** Of runs, in the order of their steps. */
export async function readEvaluations(sql: Sql, runIds: readonly string[]): Promise<Map<string, Evaluation[]>> {
  const rows = await sql.rows<EventRow>(
    "select * from fettle.run_events where run_id = any($1) and key like 'evaluation:%' order by run_id, seq",
    [runIds],
  );
  const found = new Map<string, Evaluation[]>();
  for (const { run_id, created_at, data } of rows) {
    const { step, valid_loss, best, total_steps: _, ...rest } = data ?? {};
    if (typeof step !== "number" || typeof valid_loss !== "number") continue;
    // `full_…` is OpenAI's name for what is there under ours.
    const metrics = Object.entries(rest).filter(
      (pair): pair is [string, number] => typeof pair[1] === "number" && !pair[0].startsWith("full_"),
    );
    const own = found.get(run_id) ?? [];
    own.push({ step, at: created_at, loss: valid_loss, best: best === true, metrics: Object.fromEntries(metrics) });
    found.set(run_id, own);
  }
  return found;
}
