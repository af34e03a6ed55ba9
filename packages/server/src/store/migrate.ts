/** Brings a database to this program's schema. Any number of processes may do it at once. */
import { createHash } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import pg from "pg";
import { AppError } from "../domain/error.js";
import { asAppError } from "./database.js";

const folder = fileURLToPath(new URL("./migrations/", import.meta.url));
/** Any fixed number: it names the lock among all advisory locks of the database. */
const lockKey = 4141_0001;

interface Migration {
  name: string;
  sql: string;
  sha256: string;
}

export async function readMigrations(): Promise<Migration[]> {
  const names = (await readdir(folder)).filter((name) => name.endsWith(".sql")).sort();
  return Promise.all(
    names.map(async (name) => {
      const sql = await readFile(`${folder}${name}`, "utf8");
      return { name, sql, sha256: createHash("sha256").update(sql).digest("hex") };
    }),
  );
}

/**
 * Applies what is missing, each file in a transaction, under an advisory lock. Returns the names applied now.
 * Throws `database_unavailable` when the server is not there, `config_invalid` when it is older than 15 or its
 * schema was made by a newer Fettle.
 */
export async function migrate(url: string): Promise<string[]> {
  const client = new pg.Client({
    connectionString: url,
    application_name: "fettle-migrate",
    connectionTimeoutMillis: 10_000,
  });
  client.on("error", () => undefined);
  try {
    await client.connect();
    await refuseOldServer(client);
    await client.query("select pg_advisory_lock($1)", [lockKey]);
    return await applyMissing(client);
  } catch (error) {
    throw asAppError(error);
  } finally {
    await client.end().catch(() => undefined);
  }
}

async function refuseOldServer(client: pg.Client): Promise<void> {
  const version = Number(
    (await client.query<{ v: string }>("select current_setting('server_version_num') as v")).rows[0]?.v,
  );
  if (version >= 150_000) return;
  throw new AppError(
    "config_invalid",
    `The server at DATABASE_URL is PostgreSQL ${Math.floor(version / 10_000)}; Fettle needs 15 or newer.`,
  );
}

async function applyMissing(client: pg.Client): Promise<string[]> {
  await client.query("create schema if not exists fettle");
  await client.query(
    "create table if not exists fettle.migrations (name text primary key, sha256 text not null, applied_at timestamptz not null default now())",
  );
  const applied = new Map(
    (await client.query<{ name: string; sha256: string }>("select name, sha256 from fettle.migrations")).rows.map(
      (row) => [row.name, row.sha256],
    ),
  );
  const migrations = await readMigrations();
  refuseForeignHistory(applied, migrations);
  const missing = migrations.filter((migration) => !applied.has(migration.name));
  for (const migration of missing) await applyOne(client, migration);
  return missing.map((migration) => migration.name);
}

function refuseForeignHistory(applied: Map<string, string>, migrations: Migration[]): void {
  const known = new Map(migrations.map((migration) => [migration.name, migration.sha256]));
  for (const [name, sha256] of applied) {
    const here = known.get(name);
    if (here === sha256) continue;
    const what = here === undefined ? "is not known to this program" : "has another content than this program's";
    throw new AppError(
      "config_invalid",
      `The database was changed by another version of Fettle: its migration ${name} ${what}. Start that version, or point DATABASE_URL or FETTLE_HOME at another database.`,
    );
  }
}

async function applyOne(client: pg.Client, migration: Migration): Promise<void> {
  await client.query("begin");
  try {
    await client.query(migration.sql);
    await client.query("insert into fettle.migrations (name, sha256) values ($1, $2)", [
      migration.name,
      migration.sha256,
    ]);
    await client.query("commit");
  } catch (error) {
    await client.query("rollback").catch(() => undefined);
    throw error;
  }
}
