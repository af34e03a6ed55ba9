import type { CheckpointRecord, ModelRecord, ModelStore } from "../app/ports.js";
import { type Database, type Sql, toJson } from "./database.js";

interface ModelRow {
  name: string;
  project_id: string;
  run_id: string;
  base_model: string;
  task: ModelRecord["task"];
  method: ModelRecord["method"];
  artefact: string;
  artefact_sha256: string;
  labels: string[] | null;
  created_at: number;
}
export interface CheckpointRow {
  id: string;
  run_id: string;
  step: number;
  model_name: string;
  path: string;
  metrics: Record<string, number>;
  created_at: number;
}

const record = (row: ModelRow): ModelRecord => ({
  name: row.name,
  projectId: row.project_id,
  runId: row.run_id,
  baseModel: row.base_model,
  task: row.task,
  method: row.method,
  artefact: row.artefact,
  artefactSha256: row.artefact_sha256,
  labels: row.labels,
  createdAt: row.created_at,
});

export const checkpointRecord = (row: CheckpointRow): CheckpointRecord => ({
  id: row.id,
  runId: row.run_id,
  step: row.step,
  modelName: row.model_name,
  path: row.path,
  metrics: row.metrics,
  createdAt: row.created_at,
});

/** Inserts the model of a run once: a run has one model. */
export async function insertModel(sql: Sql, model: ModelRecord): Promise<void> {
  await sql.run(
    `insert into fettle.models (name, project_id, run_id, base_model, task, method, artefact, artefact_sha256, labels, created_at)
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) on conflict (run_id) do nothing`,
    [
      model.name,
      model.projectId,
      model.runId,
      model.baseModel,
      model.task,
      model.method,
      model.artefact,
      model.artefactSha256,
      toJson(model.labels),
      model.createdAt,
    ],
  );
}

/** The lock keeps a run from being made with it between the check and the deletion. */
async function deleteModel(sql: Sql, projectId: string, name: string): ReturnType<ModelStore["delete"]> {
  await sql.rows("select 1 from fettle.models where project_id = $1 and name = $2 for update", [projectId, name]);
  const named = "project_id = $1 and (record ->> 'model' = $2 or record -> 'request' ->> 'teacher' = $2)";
  const [user] = await sql.rows<{ id: string }>(
    `select id from fettle.runs where ${named} and status not in ('succeeded', 'failed', 'cancelled')
     union all select id from fettle.sweeps where ${named} and status in ('running', 'cancelling') limit 1`,
    [projectId, name],
  );
  if (user !== undefined) return { needed_by: user.id };
  await sql.run("delete from fettle.models where project_id = $1 and name = $2", [projectId, name]);
  return { needed_by: null };
}

/** Tuned models and the checkpoints that can be asked for by name. */
export function modelStore(database: Database): ModelStore {
  return {
    async get(projectId, name) {
      const [row] = await database.rows<ModelRow>("select * from fettle.models where project_id = $1 and name = $2", [
        projectId,
        name,
      ]);
      return row ? record(row) : null;
    },
    async list(projectId) {
      return (
        await database.rows<ModelRow>("select * from fettle.models where project_id = $1 order by position", [
          projectId,
        ])
      ).map(record);
    },
    delete: (projectId, name) => database.transaction((sql) => deleteModel(sql, projectId, name)),
    async checkpoint(projectId, modelName) {
      const [row] = await database.rows<CheckpointRow>(
        `select checkpoints.* from fettle.checkpoints checkpoints join fettle.runs runs on runs.id = checkpoints.run_id
         where runs.project_id = $1 and checkpoints.model_name = $2`,
        [projectId, modelName],
      );
      return row ? checkpointRecord(row) : null;
    },
  };
}
