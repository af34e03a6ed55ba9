import { execFileSync } from "node:child_process";
import { chmodSync } from "node:fs";
import { mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { ScriptedInference } from "../../src/inference/scripted.js";
import { type RunningServer, startServer } from "../../src/main.js";
import { checkPython } from "../../src/startup/python.js";
import { claimHome } from "../../src/startup/server-file.js";
import { createTestDatabase, type TestDatabase } from "../database.js";

let database: TestDatabase;
let folder: string;
beforeAll(async () => {
  database = await createTestDatabase();
  folder = await mkdtemp(join(tmpdir(), "fettle-start-"));
});
afterAll(async () => {
  await database.drop();
  await rm(folder, { recursive: true, force: true });
});

const start = (env: Record<string, string> = {}): Promise<RunningServer> =>
  startServer({
    env: { FETTLE_HOME: join(folder, "home"), FETTLE_PORT: "0", DATABASE_URL: database.url, ...env },
    cwd: folder,
    inference: new ScriptedInference(),
    log: { info: () => undefined, warn: () => undefined, error: () => undefined },
  });
const status = async (server: RunningServer, key: string): Promise<number> =>
  (await fetch(`${server.url}/api/status`, { headers: { authorization: `Bearer ${key}` } })).status;

test("the first start makes a key and tells it once; the second is ready in 3 s and keeps it; the third takes the variable's", async () => {
  const first = await start();
  const key = first.newAdminKey ?? "";
  expect(key).toMatch(/^fettle_[\w-]{43}$/);
  const file = join(folder, "home", "admin_key");
  expect((await readFile(file, "utf8")).trim()).toBe(key);
  expect((await stat(file)).mode & 0o777).toBe(0o600);
  expect(await status(first, key)).toBe(200);
  expect(JSON.parse(await readFile(join(folder, "home", "server.json"), "utf8"))).toMatchObject({
    url: first.url,
    pid: process.pid,
  });
  await first.close();
  await expect(stat(join(folder, "home", "server.json"))).rejects.toThrow();

  const started = performance.now();
  const second = await start();
  expect(performance.now() - started).toBeLessThan(3000);
  expect(second.newAdminKey).toBeNull();
  expect(await status(second, key)).toBe(200);
  await second.close();

  const third = await start({ FETTLE_ADMIN_KEY: "from-the-environment-1" });
  expect(await status(third, "from-the-environment-1")).toBe(200);
  expect(await status(third, key)).toBe(200);
  await third.close();

  const fourth = await start({ FETTLE_ADMIN_KEY: "from-the-environment-2" });
  expect(await status(fourth, "from-the-environment-2")).toBe(200);
  expect(await status(fourth, "from-the-environment-1")).toBe(401);
  await fourth.close();
});

test("a file sent over HTTP is read in the background, and its report names the broken line", async () => {
  const server = await start({ FETTLE_ADMIN_KEY: "from-the-environment-3" });
  const headers = { authorization: "Bearer from-the-environment-3" };
  const form = new FormData();
  form.set("purpose", "fine-tune");
  form.set("file", new File(['{"messages":[\n'], "broken.jsonl"));
  const { id } = (await (await fetch(`${server.url}/v1/files`, { method: "POST", headers, body: form })).json()) as {
    id: string;
  };
  const report = async () =>
    (await (await fetch(`${server.url}/api/data/${id}`, { headers })).json()) as {
      status: string;
      report: { faults: object[] };
    };
  await expect.poll(async () => (await report()).status, { timeout: 10_000 }).toBe("error");
  expect((await report()).report.faults[0]).toMatchObject({ line: 1 });
  const faults = await (await fetch(`${server.url}/api/data/${id}/faults`, { headers })).text();
  expect(JSON.parse(faults.split("\n")[0] ?? "")).toMatchObject({ line: 1 });
  await server.close();
});

test("a port in use ends the start before anything else is begun", async () => {
  const server = await start();
  const port = new URL(server.url).port;
  await expect(start({ FETTLE_HOME: join(folder, "other"), FETTLE_PORT: port })).rejects.toMatchObject({
    code: "port_in_use",
  });
  expect((await fetch(`${server.url}/healthz`)).ok).toBe(true);
  await server.close();
});

test("a database that does not answer is told, and the port is free again", async () => {
  const gone = "postgres://nobody:hush@127.0.0.1:1/none";
  await expect(start({ FETTLE_HOME: join(folder, "third"), DATABASE_URL: gone })).rejects.toMatchObject({
    code: "database_unavailable",
  });
});

test("a home that a living server holds is refused with its address; one of a dead server is taken", async () => {
  const home = await mkdtemp(join(folder, "claimed-"));
  const alive = { owner: "me", isDead: () => false };
  await (await claimHome(home, alive)).write("http://127.0.0.1:4141");
  await expect(claimHome(home, { owner: "other", isDead: () => false })).rejects.toMatchObject({
    code: "conflict",
    message: `Fettle already runs for ${home} at http://127.0.0.1:4141 (process ${process.pid}). Use that one, stop it, or set FETTLE_HOME to another folder.`,
  });
  await claimHome(home, { owner: "other", isDead: () => true });
  await writeFile(join(home, "server.json"), "{torn");
  await claimHome(home, alive);
});

test("no Python and an old Python are told with what to do", async () => {
  await expect(checkPython(join(folder, "no-python"))).rejects.toMatchObject({
    code: "python_missing",
    message: expect.stringContaining("fettle doctor"),
  });
  const old = join(folder, "python3.9");
  await writeFile(old, "#!/bin/sh\necho 3.9.2\n");
  chmodSync(old, 0o755);
  await expect(checkPython(old)).rejects.toMatchObject({
    code: "python_unsupported",
    message: `The Python at ${old} is 3.9.2: expected 3.11 or newer. Install a newer one, or set FETTLE_PYTHON to it.`,
  });
  await checkPython(execFileSync("which", ["python3"], { encoding: "utf8" }).trim());
});
