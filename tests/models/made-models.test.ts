/** The whole server with the real trainer and a tiny random model: checkpoints answer, are tuned further, are exported. */
import { copyFileSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { eventually } from "../../packages/server/test/store/samples.js";
import { type Captured, captured } from "../cli/captured.js";
import { answeredRows } from "../tiny-model.js";
import { startTinyServer, type TinyServer } from "./tiny-server.js";

let server: TinyServer;
let cli: Captured;
let tuned: string;
let checkpoints: { name: string; step: number }[];

/** The most probable tokens with their logprobs. */
async function answer(model: string): Promise<{ text: string; logprobs: number[] }> {
  const body = {
    model,
    messages: [{ role: "user", content: "question 3 about billing" }],
    temperature: 0,
    max_completion_tokens: 8,
    logprobs: true,
  };
  const { choices, error } = await server.send("POST", "/v1/chat/completions", body);
  if (error) throw new Error(JSON.stringify(error));
  const [{ message, logprobs }] = choices;
  return { text: message.content, logprobs: logprobs.content.map((one: { logprob: number }) => one.logprob) };
}

async function train(model: string, file: string): Promise<{ id: string; fine_tuned_model: string }> {
  const supervised = {
    method: "lora",
    hyperparameters: { n_epochs: 1, batch_size: 4, learning_rate: 0.01, lora_r: "auto" },
  };
  const job = await server.send("POST", "/v1/fine_tuning/jobs", {
    model,
    training_file: file,
    seed: 1,
    method: { type: "supervised", supervised },
  });
  if (job.error) throw new Error(JSON.stringify(job.error));
  return eventually(
    "the end of the run",
    async () => {
      const now = await server.send("GET", `/v1/fine_tuning/jobs/${job.id}`);
      if (now.status === "failed") throw new Error(JSON.stringify(now.error));
      return now.status === "succeeded" ? now : null;
    },
    120_000,
  );
}

let file: string;
beforeAll(async () => {
  server = await startTinyServer("decoder", "runs:\n  checkpoint_seconds: 0\n  num_threads: 1\n");
  cli = captured({ FETTLE_URL: server.url, FETTLE_API_KEY: server.key });
  file = await server.upload(answeredRows);
  const job = await train("tiny", file);
  tuned = job.fine_tuned_model;
  const { data } = await server.send("GET", `/v1/fine_tuning/jobs/${job.id}/checkpoints`);
  checkpoints = data.map((one: { fine_tuned_model_checkpoint: string; step_number: number }) => ({
    name: one.fine_tuned_model_checkpoint,
    step: one.step_number,
  }));
}, 240_000);
afterAll(async () => {
  cli?.close();
  await server?.close();
});

test("each checkpoint that is listed answers; the one the model was made from, with the model's very numbers", {
  timeout: 120_000,
}, async () => {
  expect(checkpoints.length).toBeGreaterThan(1);
  const answers = await Promise.all(checkpoints.map(({ name }) => answer(name)));
  const own = await answer(tuned);
  expect(answers.filter(({ logprobs }) => JSON.stringify(logprobs) === JSON.stringify(own.logprobs))).toHaveLength(1);
  const [run = ""] = readdirSync(join(server.home, "blobs", "runs"));
  const models = join(server.home, "blobs", "runs", run, "models");
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
  const [adapter, merged] = [join(server.folder, "adapter"), join(server.folder, "merged")];
  expect(await cli.run(["models", "export", tuned, "--out", adapter])).toMatchObject({ code: 0 });
  const runs = join(server.home, "blobs", "runs");
  const weights = readFileSync(join(adapter, "adapter_model.safetensors"));
  const artefacts = readdirSync(runs).map((run) =>
    readFileSync(join(runs, run, "artefact", "adapter_model.safetensors")),
  );
  expect(artefacts.filter((one) => one.equals(weights))).toHaveLength(1);

  const said = await cli.run(["models", "export", tuned, "--merged", "--out", merged, "--json"]);
  expect(cli.document(said)).toMatchObject({ merged: true });
  expect(readdirSync(merged)).toEqual(expect.arrayContaining(["config.json", "model.safetensors", "tokenizer.json"]));
  expect(readdirSync(join(server.home, "blobs", "exports"))).toEqual([]);
  // Placed where base models lie, it is one.
  const placed = join(server.home, "models", "merged");
  mkdirSync(placed);
  for (const name of readdirSync(merged)) copyFileSync(join(merged, name), join(placed, name));
  const alone = await answer("merged");
  expect(alone.text).toBe(own.text);
  for (const [at, logprob] of alone.logprobs.entries()) expect(logprob).toBeCloseTo(own.logprobs[at] ?? 0, 3);
});
