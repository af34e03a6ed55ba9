/**
 * A database of its own for each test file, copied from a migrated template. The cluster is the one of the test
 * run (database-setup.ts), a real one by FETTLE_TEST_DATABASE_URL, or, without both, one for this file alone.
 */
import { createHash, randomBytes } from "node:crypto";
import pg from "pg";
import { migrate, readMigrations } from "../src/store/migrate.js";
import setupCluster from "./database-setup.js";

export interface TestDatabase {
  url: string;
  /** Drops the database, and ends the cluster when this call had started it. */
  drop(): Promise<void>;
}

/** `empty`: without the schema, for tests of the migration itself. */
export async function createTestDatabase(options: { empty?: boolean } = {}): Promise<TestDatabase> {
  const stopCluster = await setupCluster();
  const clusterUrl = process.env.FETTLE_TEST_DATABASE_URL ?? "";
  const name = `fettle_test_${randomBytes(6).toString("hex")}`;
  const template = options.empty ? "template0" : await ensureTemplate(clusterUrl);
  await asAdmin(clusterUrl, (client) =>
    client.query(`create database ${name} template ${template} strategy file_copy`),
  );
  return {
    url: databaseUrl(clusterUrl, name),
    drop: async () => {
      await asAdmin(clusterUrl, (client) => client.query(`drop database if exists ${name} with (force)`));
      await stopCluster();
    },
  };
}

function databaseUrl(clusterUrl: string, name: string): string {
  const url = new URL(clusterUrl);
  url.pathname = `/${name}`;
  return url.toString();
}

async function asAdmin<T>(clusterUrl: string, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({ connectionString: databaseUrl(clusterUrl, "postgres") });
  client.on("error", () => undefined);
  await client.connect();
  try {
    // One at a time: PostgreSQL refuses to copy a template while another session is connected to it.
    await client.query("select pg_advisory_lock(41414242)");
    return await work(client);
  } finally {
    await client.end();
  }
}

/** The template is named after the migrations' content, so that a real server never serves an old one. */
async function ensureTemplate(clusterUrl: string): Promise<string> {
  const hash = createHash("sha256")
    .update(JSON.stringify(await readMigrations()))
    .digest("hex")
    .slice(0, 16);
  const name = `fettle_template_${hash}`;
  await asAdmin(clusterUrl, async (client) => {
    const found = await client.query("select 1 from pg_database where datname = $1", [name]);
    if (found.rowCount) return;
    const making = `${name}_making`;
    await client.query(`drop database if exists ${making} with (force)`);
    await client.query(`create database ${making}`);
    await migrate(databaseUrl(clusterUrl, making));
    await client.query(`alter database ${making} rename to ${name}`);
  });
  return name;
}
