/** The whole circle with the real trainer and a tiny random encoder: rows in, the task inferred, trained, asked. */
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Fettle } from "../../packages/client/src/index.js";
import { type RunningServer, startServer } from "../../packages/server/src/main.js";
import { createTestDatabase, type TestDatabase } from "../../packages/server/test/database.js";
import { eventually } from "../../packages/server/test/store/samples.js";
import { quietLog } from "../recovery/platform.js";

const root = join(import.meta.dirname, "..", "..");
const python = join(root, ".venv", "bin", "python");
const key = "an-admin-key-of-this-test";
let database: TestDatabase;
let folder: string;
let server: RunningServer;
let client: Fettle;

beforeAll(async () => {
  expect(existsSync(python), `${python} is missing: run npm test once, it sets it up`).toBe(true);
  database = await createTestDatabase();
  folder = mkdtempSync(join(tmpdir(), "fettle-tasks-"));
  const home = join(folder, "home");
  const paths = [join(root, "trainer", "src"), join(root, "trainer", "tests")].join(":");
  execFileSync(
    python,
    ["-c", "import sys, pathlib, tiny; tiny.make_encoder(pathlib.Path(sys.argv[1]))", join(home, "models", "tiny")],
    { env: { ...process.env, PYTHONPATH: paths, HF_HUB_OFFLINE: "1" }, stdio: "inherit" },
  );
  writeFileSync(join(home, "fettle.yaml"), "runs:\n  num_threads: 1\n");
  server = await startServer({
    env: { ...process.env, FETTLE_HOME: home, FETTLE_PORT: "0", DATABASE_URL: database.url, FETTLE_ADMIN_KEY: key },
    cwd: folder,
    log: quietLog,
  });
  client = new Fettle({ baseUrl: server.url, apiKey: key });
}, 120_000);
afterAll(async () => {
  await server?.close();
  await database.drop();
  rmSync(folder, { recursive: true, force: true });
});

/** The name of the model that these rows make of the tiny one. Nothing is said but the rows and how long. */
async function tuned(rows: object[], task: string): Promise<string> {
  const form = new FormData();
  form.set("purpose", "fine-tune");
  form.set("file", new File([rows.map((row) => `${JSON.stringify(row)}\n`).join("")], "rows.jsonl"));
  const headers = { authorization: `Bearer ${key}` };
  const sent = await fetch(`${server.url}/v1/files`, { method: "POST", headers, body: form });
  const { id } = (await sent.json()) as { id: string };
  const hyperparameters = { num_train_epochs: 4, per_device_train_batch_size: 8, learning_rate: 0.01 };
  const started = await client.runs.create({ model: "tiny", training_file: id, seed: 1, hyperparameters });
  const run = await eventually(
    "the end of the run",
    async () => {
      const now = await client.runs.get(started.id);
      if (now.error !== null) throw new Error(JSON.stringify(now.error));
      return now.status === "succeeded" ? now : null;
    },
    120_000,
  );
  expect(run).toMatchObject({ task, method: "full" });
  return run.fine_tuned_model ?? "";
}

const words = ["please", "login", "fox", "dog", "lazy", "quick", "brown", "broken"];
/** 48 texts of three words each, all different. */
const texts = Array.from({ length: 48 }, (_, n) =>
  [n % 8, (n >> 1) % 7, Math.floor(n / 8)].map((at) => words[at]).join(" "),
);
const isRefund = (n: number): boolean => n % 2 === 0;
const withWord = (text: string, n: number): string => `${isRefund(n) ? "refund" : "invoice"} ${text}`;

test("numbers come back in the unit of the rows", { timeout: 180_000 }, async () => {
  const rows = texts.map((text, n) => ({ text: withWord(text, n), score: isRefund(n) ? 900 : 100 }));
  const model = await tuned(rows, "regression");
  const { data } = await client.predict({ model, input: ["refund please", "invoice please"] });
  const [refund, invoice] = data.map(({ prediction }) => ("score" in prediction ? prediction.score : Number.NaN));
  expect(refund).toBeGreaterThan(700);
  expect(refund).toBeLessThan(1100);
  expect(invoice).toBeGreaterThan(-100);
  expect(invoice).toBeLessThan(300);
});

test("entities are found where they stand", { timeout: 180_000 }, async () => {
  const rows = texts.map((text, n) => ({
    text: `${text} ${isRefund(n) ? "refund" : "dog"}`,
    entities: isRefund(n) ? [{ start: text.length + 1, end: text.length + 7, label: "money" }] : [],
  }));
  const model = await tuned(rows, "token_classification");
  const { data } = await client.predict({ model, input: ["fox please refund", { text: "lazy dog" }] });
  expect(data.map(({ prediction }) => prediction)).toEqual([
    { entities: [{ start: 11, end: 17, label: "money", text: "refund", probability: expect.any(Number) }] },
    { entities: [] },
  ]);
});
