import type { CheckpointRecord, Ingest, Lease, Page, PageRequest, RunStore } from "../app/ports.js";
import { StaleLease } from "../app/ports.js";
import type { Run } from "../domain/job.js";
import { type Database, type Sql, toJson } from "./database.js";
import { insertFile } from "./files.js";
import { acquireLease, releaseLease, renewLease } from "./leases.js";
import { type CheckpointRow, checkpointRecord, insertModel } from "./models.js";
import { readPage } from "./page.js";
import { appendEvents, readEvaluations, readEvents } from "./run-events.js";
import type { RunFeed } from "./run-feed.js";

interface RunRow {
  record: Run;
}
interface LockedRow extends RunRow {
  lease_owner: string | null;
  lease_token: number;
}
type Change = Parameters<RunStore["update"]>[1];

/** Runs with their events, checkpoints and leases. Every committed change is told to `feed`'s listeners. */
export function runStore(database: Database, feed: RunFeed): RunStore {
  return {
    create: (run, events) => database.transaction((sql) => createRun(sql, run, events)),
    async get(projectId, id) {
      const [row] = await database.rows<RunRow>("select record from fettle.runs where project_id = $1 and id = $2", [
        projectId,
        id,
      ]);
      return row?.record ?? null;
    },
    list: (projectId, page) => listRuns(database, projectId, page),
    async withStatus(statuses) {
      return (
        await database.rows<RunRow>("select record from fettle.runs where status = any($1) order by position", [
          statuses,
        ])
      ).map((row) => row.record);
    },
    evaluated: (ids) => readEvaluated(database, ids),
    async succeeded(projectId, limit) {
      const sql =
        "select record from fettle.runs where project_id = $1 and status = 'succeeded' order by position desc limit $2";
      return (await database.rows<RunRow>(sql, [projectId, limit])).map((row) => row.record);
    },
    update: (id, change, lease) => database.transaction((sql) => updateRun(sql, { id, change, lease })),
    ingest: (lease, input) => database.transaction((sql) => ingest(sql, lease, input)),
    async offset(id) {
      const [row] = await database.rows<{ events_offset: number }>(
        "select events_offset from fettle.runs where id = $1",
        [id],
      );
      return row?.events_offset ?? 0;
    },
    acquire: (id, owner, terms) => acquireLease(database, { id, owner, ...terms }),
    renew: (lease, ttlMs) => renewLease(database, lease, ttlMs),
    release: (lease) => releaseLease(database, lease),
    events: (projectId, id, page) => readEvents(database, { projectId, runId: id, ...page }),
    checkpoints: (projectId, id, page) => listCheckpoints(database, { projectId, id, page }),
    onChange: (fn) => feed.listen(fn),
  };
}

/** The share locks keep a file and a tuned model from being deleted between the check and the insert. */
async function createRun(
  sql: Sql,
  run: Run,
  events: Parameters<RunStore["create"]>[1],
): ReturnType<RunStore["create"]> {
  const files = [...new Set([run.trainingFile, ...(run.validationFile === null ? [] : [run.validationFile])])];
  const present = await sql.rows(
    "select 1 from fettle.files where project_id = $1 and id = any($2) and deleted_at is null for share",
    [run.projectId, files],
  );
  if (present.length < files.length) return "file_gone";
  const models = tunedModels(run);
  const kept = await sql.rows("select 1 from fettle.models where project_id = $1 and name = any($2) for share", [
    run.projectId,
    models,
  ]);
  if (kept.length < models.length) return "model_gone";
  const inserted = await sql.run("insert into fettle.runs (id, record) values ($1, $2) on conflict (id) do nothing", [
    run.id,
    toJson(run),
  ]);
  if (inserted === 0) return "exists";
  await appendEvents(sql, run.id, events);
  await tell(sql, run.id);
  return "created";
}

/** Those that can be deleted. A checkpoint is its run's, and stays. */
const tunedModels = ({ model, request }: Run): string[] => [
  ...new Set([model, request.teacher ?? ""].filter((name) => name.startsWith("ft:") && !/:ckpt-step-\d+$/.test(name))),
];

async function readEvaluated(sql: Sql, ids: readonly string[]): ReturnType<RunStore["evaluated"]> {
  const runs = await sql.rows<RunRow>("select record from fettle.runs where id = any($1)", [ids]);
  const evaluations = await readEvaluations(sql, ids);
  return new Map(runs.map(({ record }) => [record.id, { run: record, evaluations: evaluations.get(record.id) ?? [] }]));
}

async function listRuns(
  sql: Sql,
  projectId: string,
  page: PageRequest & { metadata?: Record<string, string> | undefined },
): Promise<Page<Run>> {
  const byMetadata = page.metadata !== undefined && Object.keys(page.metadata).length > 0;
  const listing = {
    table: "fettle.runs",
    scope: "project_id = $1",
    values: [projectId],
    record: (row: RunRow) => row.record,
  };
  if (!byMetadata) return readPage(sql, listing, page);
  return readPage(
    sql,
    { ...listing, where: "record -> 'metadata' @> $2::jsonb", values: [projectId, toJson(page.metadata) ?? "{}"] },
    page,
  );
}

async function updateRun(
  sql: Sql,
  input: { id: string; change: Change; lease: Lease | undefined },
): Promise<Run | null> {
  const row = await lockRun(sql, input.id, input.lease);
  if (row === null) return null;
  const changed = input.change(row.record);
  if (changed === null) return row.record;
  await writeRun(sql, changed.run);
  await appendEvents(sql, input.id, changed.events);
  await tell(sql, input.id);
  return changed.run;
}

async function ingest(sql: Sql, lease: Lease, input: Ingest): Promise<void> {
  const row = await lockRun(sql, lease.runId, lease);
  if (row === null) throw new StaleLease(`Run ${lease.runId} is gone.`);
  await appendEvents(sql, lease.runId, input.events);
  for (const checkpoint of input.checkpoints) await insertCheckpoint(sql, checkpoint);
  if (input.goneCheckpoints?.length)
    await sql.run("delete from fettle.checkpoints where run_id = $1 and step = any($2)", [
      lease.runId,
      input.goneCheckpoints,
    ]);
  if (input.model) await insertModel(sql, input.model);
  if (input.file) await insertFile(sql, input.file);
  await sql.run("update fettle.runs set events_offset = greatest(events_offset, $2) where id = $1", [
    lease.runId,
    input.offset,
  ]);
  if (input.change) await writeRun(sql, input.change(row.record));
  await tell(sql, lease.runId);
}

/** Locks the run's row until the transaction ends. With a lease, only for its present owner. */
async function lockRun(sql: Sql, id: string, lease: Lease | undefined): Promise<LockedRow | null> {
  const [row] = await sql.rows<LockedRow>(
    "select record, lease_owner, lease_token from fettle.runs where id = $1 for update",
    [id],
  );
  if (row === undefined) return null;
  if (lease !== undefined && (row.lease_owner !== lease.owner || row.lease_token !== lease.token)) {
    throw new StaleLease(
      `The lease ${lease.token} of ${lease.owner} on run ${id} is stale: ${row.lease_owner ?? "nobody"} holds lease ${row.lease_token}.`,
    );
  }
  return row;
}

async function writeRun(sql: Sql, run: Run): Promise<void> {
  await sql.run("update fettle.runs set record = $2, updated_at = clock_timestamp() where id = $1", [
    run.id,
    toJson(run),
  ]);
}

/** Delivered when the transaction commits, to every listening process. */
async function tell(sql: Sql, runId: string): Promise<void> {
  await sql.run("select pg_notify('fettle_runs', $1)", [runId]);
}

async function insertCheckpoint(sql: Sql, checkpoint: CheckpointRecord): Promise<void> {
  await sql.run(
    `insert into fettle.checkpoints (id, run_id, step, model_name, path, metrics, created_at)
     values ($1, $2, $3, $4, $5, $6, $7) on conflict (run_id, step) do nothing`,
    [
      checkpoint.id,
      checkpoint.runId,
      checkpoint.step,
      checkpoint.modelName,
      checkpoint.path,
      toJson(checkpoint.metrics),
      checkpoint.createdAt,
    ],
  );
}

/** Newest step first, as OpenAI lists them. */
async function listCheckpoints(
  sql: Sql,
  input: { projectId: string; id: string; page: PageRequest },
): Promise<Page<CheckpointRecord>> {
  const table = `(select checkpoints.*, checkpoints.step as position, runs.project_id from fettle.checkpoints checkpoints
    join fettle.runs runs on runs.id = checkpoints.run_id) as listed`;
  return readPage<CheckpointRow, CheckpointRecord>(
    sql,
    { table, scope: "project_id = $1 and run_id = $2", values: [input.projectId, input.id], record: checkpointRecord },
    input.page,
  );
}
