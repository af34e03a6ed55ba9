/** Sweeps: one row each, with the plans of their trials. Listeners of runs are told of each change too. */
import type { SweepStore } from "../app/ports.js";
import type { Sweep } from "../domain/sweep.js";
import { type Database, type Sql, toJson } from "./database.js";
import { readPage } from "./page.js";

interface SweepRow {
  record: Sweep;
}

export function sweepStore(database: Database): SweepStore {
  return {
    create: (sweep) =>
      database.transaction(async (sql) => {
        await sql.run("insert into fettle.sweeps (id, record) values ($1, $2)", [sweep.id, toJson(sweep)]);
        await tell(sql, sweep.id);
      }),
    async get(projectId, id) {
      const sql = "select record from fettle.sweeps where project_id = $1 and id = $2";
      const [row] = await database.rows<SweepRow>(sql, [projectId, id]);
      return row?.record ?? null;
    },
    list: (projectId, page) =>
      readPage<SweepRow, Sweep>(
        database,
        {
          table: "fettle.sweeps",
          scope: "project_id = $1",
          where: `record -> 'folds' is ${page.kind === "sweep" ? "null" : "not null"}`,
          values: [projectId],
          record: (row) => row.record,
        },
        page,
      ),
    async unended() {
      const sql = "select record from fettle.sweeps where status in ('running', 'cancelling') order by position";
      return (await database.rows<SweepRow>(sql)).map((row) => row.record);
    },
    update: (id, change) =>
      database.transaction(async (sql) => {
        const [row] = await sql.rows<SweepRow>("select record from fettle.sweeps where id = $1 for update", [id]);
        const changed = row === undefined ? null : change(row.record);
        if (changed === null) return null;
        await sql.run("update fettle.sweeps set record = $2 where id = $1", [id, toJson(changed)]);
        await tell(sql, id);
        return changed;
      }),
  };
}

/** The feed of runs has room for it: whoever listens looks at what may have changed. */
async function tell(sql: Sql, id: string): Promise<void> {
  await sql.run("select pg_notify('fettle_runs', $1)", [id]);
}
