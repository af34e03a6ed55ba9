import { spawn } from "node:child_process";
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { chmod, mkdtemp, realpath, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import pg from "pg";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { migrate } from "../../src/store/migrate.js";
import { connectStore, openStore } from "../../src/store/open.js";
import { type EmbeddedPostgres, startPostgres } from "../../src/store/postgres.js";
import { createTestDatabase } from "../database.js";
import { eventually, storedRun } from "./samples.js";

async function query<Row extends object>(url: string, sql: string): Promise<Row[]> {
  const client = new pg.Client({ connectionString: url });
  client.on("error", () => undefined);
  await client.connect();
  try {
    return (await client.query<Row>(sql)).rows;
  } finally {
    await client.end();
  }
}

describe("embedded PostgreSQL", () => {
  let parent: string;
  let home: string;
  const running: EmbeddedPostgres[] = [];
  const start = async (): Promise<EmbeddedPostgres> => {
    const postgres = await startPostgres({ home, durable: false });
    running.push(postgres);
    return postgres;
  };
  beforeAll(async () => {
    parent = await mkdtemp(join(tmpdir(), "fettle-pg-"));
    // Root's temporary folders are closed to others; the folder above the home must be passable.
    await chmod(parent, 0o711);
    home = join(parent, `home with "quotes" and $HOME`);
    await (await start()).stop();
  });
  afterEach(async () => {
    for (const postgres of running.splice(0)) await postgres.stop();
  });
  afterAll(() => rm(parent, { recursive: true, force: true }));

  it("starts within three seconds on busy cores when its data is there, on the same port, for us alone", async () => {
    const before = performance.now();
    const postgres = await start();
    expect(performance.now() - before).toBeLessThan(3_000);
    expect(postgres.adopted).toBe(false);
    expect(new URL(postgres.url).port).toBe(readFileSync(join(home, "postgres", "port"), "utf8"));
    expect(statSync(join(home, "postgres", "password")).mode & 0o777).toBe(0o600);
    expect(await query(postgres.url, "show listen_addresses")).toEqual([{ listen_addresses: "127.0.0.1" }]);
    const wrong = new URL(postgres.url);
    wrong.password = "wrong";
    await expect(query(wrong.toString(), "select 1")).rejects.toThrow(/password authentication failed/);
  });

  it("is adopted, not started twice, when it is alive", async () => {
    const [first, second] = await Promise.all([start(), start()]);
    expect(second.pid).toBe(first.pid);
    expect([first.adopted, second.adopted].sort()).toEqual([false, true]);
  });

  it("comes back with everything committed after kill -9", async () => {
    const first = await start();
    await query(first.url, "create table kept as select generate_series(1, 1000) as n");
    let pid = first.pid;
    for (let round = 0; round < 5; round++) {
      process.kill(pid, "SIGKILL");
      const next = await start();
      expect(next.pid).not.toBe(pid);
      expect(await query(next.url, "select count(*)::int as n from kept")).toEqual([{ n: 1000 }]);
      pid = next.pid;
    }
  });

  it("is not fooled by a pid file whose number belongs to another program", async () => {
    const bystander = spawn("sleep", ["60"], { stdio: "ignore" });
    writeFileSync(
      join(home, "postgres", "data", "postmaster.pid"),
      `${bystander.pid}\n${home}\n1\n5432\n\n127.0.0.1\n\nready\n`,
    );
    const postgres = await start();
    expect(postgres.adopted).toBe(false);
    expect(bystander.exitCode).toBeNull();
    bystander.kill("SIGKILL");
  });

  it("moves to another port when its own is taken", async () => {
    const squatter = createServer();
    const port = Number(readFileSync(join(home, "postgres", "port"), "utf8"));
    await new Promise<void>((resolve) => squatter.listen(port, "127.0.0.1", resolve));
    const postgres = await start();
    expect(Number(new URL(postgres.url).port)).not.toBe(port);
    await new Promise((resolve) => squatter.close(resolve));
  });

  it("says what is wrong when the data is of another PostgreSQL", async () => {
    const version = join(home, "postgres", "data", "PG_VERSION");
    writeFileSync(version, "12\n");
    await expect(start()).rejects.toMatchObject({
      code: "database_unavailable",
      message: expect.stringContaining("belongs to PostgreSQL 12"),
    });
    writeFileSync(version, "18\n");
  });

  it("opens the store on it, and ends it", async () => {
    const open = await openStore({ home, databaseUrl: null });
    const run = await storedRun(open.store);
    expect((await open.store.runs.get("proj_a", run.id))?.id).toBe(run.id);
    await open.close();
    await eventually("its end", async () => (await query(open.url, "select 1").catch(() => null)) === null);
  });
});

describe("a home that the database's account may not pass", () => {
  // Only root runs the database as another user, who may then be kept out.
  it.skipIf(process.getuid?.() !== 0)("keeps the data where that account may go, and finds it again", async () => {
    const closed = await mkdtemp(join(tmpdir(), "fettle-closed-"));
    const home = join(closed, "home");
    const first = await startPostgres({ home, durable: false });
    const data = await realpath(join(home, "postgres"));
    try {
      expect(statSync(closed).mode & 0o777).toBe(0o700);
      expect(data.startsWith("/var/lib/fettle/postgres-")).toBe(true);
      await query(first.url, "create table kept as select 1 as n");
      await first.stop();
      const second = await startPostgres({ home, durable: false });
      expect(await query(second.url, "select n from kept")).toEqual([{ n: 1 }]);
      await second.stop();
    } finally {
      await first.stop();
      for (const folder of [closed, data]) await rm(folder, { recursive: true, force: true });
    }
  });
});

describe("migration", () => {
  it("is done once by three processes at the same time", async () => {
    const database = await createTestDatabase({ empty: true });
    const applied = await Promise.all([migrate(database.url), migrate(database.url), migrate(database.url)]);
    const migrations = join(import.meta.dirname, "../../src/store/migrations");
    expect(applied.flat()).toEqual(readdirSync(migrations).sort());
    expect(await migrate(database.url)).toEqual([]);
    await database.drop();
  });

  it("refuses a database that another version of Fettle changed", async () => {
    const database = await createTestDatabase();
    await query(database.url, "insert into fettle.migrations (name, sha256) values ('0999_later.sql', 'x')");
    await expect(migrate(database.url)).rejects.toMatchObject({
      code: "config_invalid",
      message: expect.stringContaining("0999_later.sql is not known"),
    });
    await database.drop();
  });

  it("says when the server does not answer", async () => {
    await expect(connectStore("postgres://nobody:x@127.0.0.1:9/none")).rejects.toMatchObject({
      code: "database_unavailable",
    });
  });
});
