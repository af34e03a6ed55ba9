/** The whole server with the real trainer and a tiny random model: checkpoints answer, are tuned further, are exported. */
import { execFileSync } from "node:child_process";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type RunningServer, startServer } from "../../packages/server/src/main.js";
import { createTestDatabase, type TestDatabase } from "../../packages/server/test/database.js";
import { eventually } from "../../packages/server/test/store/samples.js";
import { quietLog } from "../recovery/platform.js";
import { type Captured, captured } from "../cli/captured.js";

const root = join(import.meta.dirname, "..", "..");
const python = join(root, ".venv", "bin", "python");
const key = "an-admin-key-of-this-test";
let database: TestDatabase;
let folder: string;
let server: RunningServer;
let cli: Captured;
let tuned: string;
let checkpoints: { name: string; step: number }[];

// biome-ignore lint/suspicious/noExplicitAny: answers of a server that other tests hold to its contract
async function send(method: string, path: string, body?: object | FormData): Promise<any> {
  const isForm = body instanceof FormData;
  const response = await fetch(`${server.url}${path}`, {
    method,
    headers: { authorization: `Bearer ${key}`, ...(!isForm && { "content-type": "application/json" }) },
    ...(body && { body: isForm ? body : JSON.stringify(body) }),
  });
  return response.json();
}

/** The most probable tokens with their logprobs. */
async function answer(model: string): Promise<{ text: string; logprobs: number[] }> {
  const body = {
    model,
    messages: [{ role: "user", content: "question 3 about billing" }],
    temperature: 0,
    max_completion_tokens: 8,
    logprobs: true,
  };
  const { choices, error } = await send("POST", "/v1/chat/completions", body);
  if (error) throw new Error(JSON.stringify(error));
  const [{ message, logprobs }] = choices;
  return { text: message.content, logprobs: logprobs.content.map((one: { logprob: number }) => one.logprob) };
}

async function train(model: string, file: string): Promise<{ id: string; fine_tuned_model: string }> {
  const supervised = {
    method: "lora",
    hyperparameters: { n_epochs: 1, batch_size: 4, learning_rate: 0.01, lora_r: "auto" },
  };
  const job = await send("POST", "/v1/fine_tuning/jobs", {
    model,
    training_file: file,
    seed: 1,
    method: { type: "supervised", supervised },
  });
  if (job.error) throw new Error(JSON.stringify(job.error));
  return eventually(
    "the end of the run",
    async () => {
      const now = await send("GET", `/v1/fine_tuning/jobs/${job.id}`);
      if (now.status === "failed") throw new Error(JSON.stringify(now.error));
      return now.status === "succeeded" ? now : null;
    },
    120_000,
  );
}

let file: string;
beforeAll(async () => {
  expect(existsSync(python), `${python} is missing: run npm test once, it sets it up`).toBe(true);
  database = await createTestDatabase();
  folder = mkdtempSync(join(tmpdir(), "fettle-made-"));
  const home = join(folder, "home");
  const paths = [join(root, "trainer", "src"), join(root, "trainer", "tests")].join(":");
  execFileSync(
    python,
    ["-c", "import sys, pathlib, tiny; tiny.make_decoder(pathlib.Path(sys.argv[1]))", join(home, "models", "tiny")],
    { env: { ...process.env, PYTHONPATH: paths, HF_HUB_OFFLINE: "1" }, stdio: "inherit" },
  );
  writeFileSync(join(home, "fettle.yaml"), "runs:\n  checkpoint_seconds: 0\n  num_threads: 1\n");
  server = await startServer({
    env: { ...process.env, FETTLE_HOME: home, FETTLE_PORT: "0", DATABASE_URL: database.url, FETTLE_ADMIN_KEY: key },
    cwd: folder,
    log: quietLog,
  });
  cli = captured({ FETTLE_URL: server.url, FETTLE_API_KEY: key });
  const rows = Array.from({ length: 40 }, (_, n) => ({
    messages: [
      { role: "user", content: `question ${n} about billing and login` },
      { role: "assistant", content: n % 2 ? "refund the invoice" : "reset the password" },
    ],
  }));
  const form = new FormData();
  form.set("purpose", "fine-tune");
  form.set("file", new File([rows.map((row) => `${JSON.stringify(row)}\n`).join("")], "rows.jsonl"));
  file = (await send("POST", "/v1/files", form)).id;
  const job = await train("tiny", file);
  tuned = job.fine_tuned_model;
  const { data } = await send("GET", `/v1/fine_tuning/jobs/${job.id}/checkpoints`);
  checkpoints = data.map((one: { fine_tuned_model_checkpoint: string; step_number: number }) => ({
    name: one.fine_tuned_model_checkpoint,
    step: one.step_number,
  }));
}, 240_000);
afterAll(async () => {
  cli?.close();
  await server?.close();
  await database.drop();
  rmSync(folder, { recursive: true, force: true });
});

test("each checkpoint that is listed answers; the one the model was made from, with the model's very numbers", {
  timeout: 120_000,
}, async () => {
  expect(checkpoints.length).toBeGreaterThan(1);
  const answers = await Promise.all(checkpoints.map(({ name }) => answer(name)));
  const own = await answer(tuned);
  expect(answers.filter(({ logprobs }) => JSON.stringify(logprobs) === JSON.stringify(own.logprobs))).toHaveLength(1);
  const [run = ""] = readdirSync(join(folder, "home", "blobs", "runs"));
  const models = join(folder, "home", "blobs", "runs", run, "models");
  expect(
    readdirSync(models)
      .filter((name) => !name.startsWith("."))
      .sort(),
  ).toEqual(checkpoints.map(({ step }) => String(step)).sort());
});

test("a run begins with a checkpoint", { timeout: 180_000 }, async () => {
  const job = await train(checkpoints.at(-1)?.name ?? "", file);
  expect(await answer(job.fine_tuned_model)).not.toEqual(await answer(tuned));
});

test("exported, the adapter is the artefact's bytes; merged, it answers as base and adapter do", {
  timeout: 120_000,
}, async () => {
  const own = await answer(tuned);
  const [adapter, merged] = [join(folder, "adapter"), join(folder, "merged")];
  expect(await cli.run(["models", "export", tuned, "--out", adapter])).toMatchObject({ code: 0 });
  const runs = join(folder, "home", "blobs", "runs");
  const weights = readFileSync(join(adapter, "adapter_model.safetensors"));
  const artefacts = readdirSync(runs).map((run) =>
    readFileSync(join(runs, run, "artefact", "adapter_model.safetensors")),
  );
  expect(artefacts.filter((one) => one.equals(weights))).toHaveLength(1);

  const said = await cli.run(["models", "export", tuned, "--merged", "--out", merged, "--json"]);
  expect(cli.document(said)).toMatchObject({ merged: true });
  expect(readdirSync(merged)).toEqual(expect.arrayContaining(["config.json", "model.safetensors", "tokenizer.json"]));
  expect(readdirSync(join(folder, "home", "blobs", "exports"))).toEqual([]);
  // Placed where base models lie, it is one.
  const placed = join(folder, "home", "models", "merged");
  mkdirSync(placed);
  for (const name of readdirSync(merged)) copyFileSync(join(merged, name), join(placed, name));
  const alone = await answer("merged");
  expect(alone.text).toBe(own.text);
  for (const [at, logprob] of alone.logprobs.entries()) expect(logprob).toBeCloseTo(own.logprobs[at] ?? 0, 3);
});
