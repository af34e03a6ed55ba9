/** Files that a killed server was reading are read by the next one, once and whole. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, it } from "vitest";
import { createTestDatabase, type TestDatabase } from "../../packages/server/test/database.js";
import { eventually } from "../../packages/server/test/store/samples.js";

const program = fileURLToPath(new URL("./whole-server.ts", import.meta.url));
const key = "from-the-environment-1";
const headers = { authorization: `Bearer ${key}` };
const numRows = 60_000;

let database: TestDatabase;
let home: string;
let server: { url: string; child: ChildProcess } | null = null;
beforeAll(async () => {
  database = await createTestDatabase();
  home = mkdtempSync(join(tmpdir(), "fettle-background-"));
});
afterAll(async () => {
  await kill();
  await database.drop();
  rmSync(home, { recursive: true, force: true });
});

async function start(): Promise<string> {
  const env = { FETTLE_HOME: home, FETTLE_PORT: "0", DATABASE_URL: database.url, FETTLE_ADMIN_KEY: key };
  const child = spawn(process.execPath, ["--import", "tsx", program, JSON.stringify(env)], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const [line] = (await once(child.stdout, "data")) as [Buffer];
  server = { url: line.toString().trim(), child };
  return server.url;
}

async function kill(): Promise<void> {
  if (server === null) return;
  const ended = once(server.child, "exit");
  server.child.kill("SIGKILL");
  await ended;
  server = null;
}

interface Data {
  id: string;
  status: string;
  report: { num_usable: number; num_faults: number } | null;
}
const read = async (url: string, id: string): Promise<Data> =>
  (await (await fetch(`${url}/api/data/${id}`, { headers })).json()) as Data;

/** Rows are on their way to the disk, and not all there. */
function isBeingRead(id: string): boolean {
  const folder = join(home, "blobs", "files", id);
  const sizes = readdirSync(folder)
    .filter((name) => name.startsWith("rows.jsonl.partial-"))
    .map((name) => statSync(join(folder, name)).size);
  return Math.max(0, ...sizes) > 1_000_000 && !existsSync(join(folder, "rows.jsonl"));
}

async function upload(url: string): Promise<string> {
  const rows = Array.from({ length: numRows }, (_, n) =>
    JSON.stringify({
      messages: [
        { role: "user", content: `question ${n}` },
        { role: "assistant", content: `answer ${n}` },
      ],
    }),
  );
  const form = new FormData();
  form.set("purpose", "fine-tune");
  form.set("file", new File([rows.join("\n")], "rows.jsonl"));
  const { id } = (await (await fetch(`${url}/v1/files`, { method: "POST", headers, body: form })).json()) as Data;
  return id;
}

it("a server killed while it reads a file leaves it to the next, twice over", { timeout: 120_000 }, async () => {
  const id = await upload(await start());
  expect((await read(server?.url ?? "", id)).status).toBe("uploaded");
  await kill();

  const second = await start();
  await eventually("rows being written", () => isBeingRead(id));
  expect((await read(second, id)).status).toBe("uploaded");
  await kill();

  const third = await start();
  const done = await eventually(
    "the file's report",
    async () => {
      const now = await read(third, id);
      return now.status === "uploaded" ? null : now;
    },
    60_000,
  );
  expect(readdirSync(join(home, "blobs", "files", id)).sort()).toEqual(["faults.jsonl", "original", "rows.jsonl"]);
  expect(done).toMatchObject({ status: "processed", report: { num_usable: numRows, num_faults: 0 } });
});
