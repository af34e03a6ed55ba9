/** A disk that fills while the shipped trainer trains under the whole server: nothing is lost, and `resume` ends the run. */
import { execFile, execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type RunningServer, startServer } from "../../packages/server/src/main.js";
import { connectStore } from "../../packages/server/src/store/open.js";
import { createTestDatabase, type TestDatabase } from "../../packages/server/test/database.js";
import { eventually } from "../../packages/server/test/store/samples.js";
import { quietLog } from "./platform.js";

const root = fileURLToPath(new URL("../..", import.meta.url));
const python = join(root, ".venv", "bin", "python");
const makeModel = "import sys, pathlib, tiny; tiny.make_decoder(pathlib.Path(sys.argv[1]))";
const key = "key-of-the-full-disk";

let database: TestDatabase;
let server: RunningServer | undefined;
let home: string;
let runs: string;
const canMount = process.platform === "linux" && process.getuid?.() === 0;

beforeAll(async () => {
  if (!canMount) return;
  expect(existsSync(python), `${python} is missing: run npm test once, it sets it up`).toBe(true);
  home = mkdtempSync(join(tmpdir(), "fettle-full-"));
  runs = join(home, "blobs", "runs");
  mkdirSync(runs, { recursive: true });
  // Rows, cache and two checkpoints of 0.7 MB; the third does not fit.
  execFileSync("mount", ["-t", "tmpfs", "-o", "size=2m", "tmpfs", runs]);
  writeFileSync(join(home, "fettle.yaml"), "runs:\n  checkpoint_seconds: 0\n  num_threads: 1\n");
  const paths = [join(root, "trainer", "src"), join(root, "trainer", "tests")].join(":");
  const making = promisify(execFile)(python, ["-c", makeModel, join(home, "models", "tiny")], {
    env: { ...process.env, PYTHONPATH: paths, HF_HUB_OFFLINE: "1" },
  });
  database = await createTestDatabase();
  const env = { ...process.env, FETTLE_HOME: home, FETTLE_PORT: "0", FETTLE_ADMIN_KEY: key, HF_HUB_OFFLINE: "1" };
  server = await startServer({ env: { ...env, DATABASE_URL: database.url }, cwd: home, log: quietLog });
  await making;
});
afterAll(async () => {
  if (!canMount) return;
  await server?.close();
  execFileSync("umount", ["--lazy", runs]);
  await database.drop();
  rmSync(home, { recursive: true, force: true });
});

const rows = Array.from({ length: 40 }, (_, n) => ({
  messages: [
    { role: "user", content: `question ${n} about billing and login` },
    { role: "assistant", content: n % 2 ? "refund the invoice" : "reset the password" },
  ],
}));

interface RunAnswer {
  id: string;
  status: string;
  waiting: string | null;
  step: number;
  total_steps: number;
  attempt: number;
  error: unknown;
  estimate: { basis: string };
}

async function api<T>(path: string, body?: object | FormData): Promise<T> {
  const isForm = body instanceof FormData;
  const answer = await fetch(`${server?.url}${path}`, {
    method: body === undefined ? "GET" : "POST",
    headers: { authorization: `Bearer ${key}`, ...(!isForm && { "content-type": "application/json" }) },
    ...(body !== undefined && { body: isForm ? body : JSON.stringify(body) }),
  });
  if (!answer.ok) throw new Error(await answer.text());
  return (await answer.json()) as T;
}

const reaches = (id: string, status: string): Promise<RunAnswer> =>
  eventually(
    status,
    async () => {
      const run = await api<RunAnswer>(`/api/runs/${id}`);
      if (run.status === "failed") throw new Error(JSON.stringify(run.error));
      return run.status === status ? run : null;
    },
    60_000,
  );

/** Steps of the checkpoints on the disk, each checked against its manifest. */
function wholeCheckpoints(id: string): number[] {
  const folder = join(runs, id, "checkpoints");
  const names = readdirSync(folder);
  for (const name of names) {
    const manifest = JSON.parse(readFileSync(join(folder, name, "manifest.json"), "utf8")) as {
      files: Record<string, { bytes: number; sha256: string }>;
    };
    for (const [file, { bytes, sha256 }] of Object.entries(manifest.files)) {
      const content = readFileSync(join(folder, name, file));
      expect([content.length, createHash("sha256").update(content).digest("hex")]).toEqual([bytes, sha256]);
    }
  }
  return names.map(Number).sort((a, b) => a - b);
}

// A disk of two megabytes can only be made by root, on Linux.
it.skipIf(!canMount)(
  "a full disk pauses the run with its checkpoints whole; with space again, resume ends it",
  {
    timeout: 120_000,
  },
  async () => {
    const form = new FormData();
    form.set("purpose", "fine-tune");
    form.set("file", new File([rows.map((row) => `${JSON.stringify(row)}\n`).join("")], "train.jsonl"));
    const { id: file } = await api<{ id: string }>("/v1/files", form);
    const { id } = await api<RunAnswer>("/api/runs", {
      model: "tiny",
      training_file: file,
      method: "full",
      seed: 5,
      hyperparameters: { num_train_epochs: 1, per_device_train_batch_size: 4 },
    });

    const paused = await reaches(id, "paused");
    expect(paused.waiting).toBe("The disk is full; the last checkpoint is whole. Free space, then resume.");
    expect(paused.error).toBeNull();
    const kept = wholeCheckpoints(id);
    const newest = kept.at(-1) ?? 0;
    expect(newest).toBeGreaterThan(0);
    expect(newest).toBeLessThan(paused.total_steps);
    const { data: listed } = await api<{ data: { step_number: number }[] }>(`/v1/fine_tuning/jobs/${id}/checkpoints`);
    expect(listed.map((one) => one.step_number).sort((a, b) => a - b)).toEqual(kept);
    const { data: events } = await api<{ data: { message: string }[] }>(`/api/runs/${id}/events?limit=1000`);
    expect(events.map((event) => event.message)).toContain(
      "The job is paused. The disk is full; the last checkpoint is whole. Free space, then resume.",
    );

    execFileSync("mount", ["-o", "remount,size=40m", runs]);
    await api(`/v1/fine_tuning/jobs/${id}/resume`, {});
    const done = await reaches(id, "succeeded");
    expect(done.step).toBe(done.total_steps);
    expect(done.estimate.basis).toMatch(/measured on this machine/);
    const store = await connectStore(database.url);
    const [last] = await store.runs.succeeded("default", 1);
    await store.close();
    expect(last?.id).toBe(id);
    expect(last?.trainSeconds).toBeGreaterThan(0);
    const started = readFileSync(join(runs, id, "events.jsonl"), "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as { type: string; resumed_from_step: number | null })
      .filter((event) => event.type === "started");
    expect(started.map((event) => event.resumed_from_step)).toEqual([null, newest]);
  },
);
