import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Fettle } from "../../packages/client/src/index.js";
import { type ClientServer, startClientServer } from "../clients/server.js";
import { type Captured, captured } from "./captured.js";

let server: ClientServer;
let cli: Captured;
let client: Fettle;
let file: string;
const base = "smollm2-135m-instruct";

beforeAll(async () => {
  server = await startClientServer();
  const url = server.baseURL.replace(/\/v1$/, "");
  cli = captured({ FETTLE_URL: url, FETTLE_API_KEY: server.apiKey });
  client = new Fettle({ baseUrl: url, apiKey: server.apiKey });
  file = join(cli.home, "tickets.jsonl");
  writeFileSync(
    file,
    '{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"hello"}]}\n'.repeat(12),
  );
});
afterAll(async () => {
  cli.close();
  await server.close();
});

/** A run that waits in the queue. */
async function newRun(): Promise<string> {
  const said = await cli.run(["train", file, "--model", base, "--detach"]);
  expect(said.code).toBe(0);
  return said.stdout.trim();
}

async function until<T>(ask: () => Promise<T | undefined>): Promise<T> {
  for (const end = Date.now() + 10_000; Date.now() < end; ) {
    const answer = await ask();
    if (answer !== undefined) return answer;
    await new Promise((resolve) => setImmediate(resolve));
  }
  throw new Error("It did not come about within 10 s.");
}

describe("runs", () => {
  it("train --teacher names whom it learns from too", async () => {
    const said = await cli.run(["train", file, "-m", base, "--teacher", "ft:nobody:x", "--detach", "--json"]);
    expect(said.code).not.toBe(0);
    expect(said.stderr).toContain('The model "ft:nobody:x" does not exist');
    const alone = await cli.run(["train", file, "-m", base, "--teacher", base, "--detach"]);
    expect(alone.stderr).toContain(`"${base}" is a base model, which gives no answers to learn from`);
  });

  it("train follows the run to its end: talk on stderr, one document on stdout", async () => {
    const before = (await client.runs.list()).data.map((run) => run.id);
    const training = cli.run([
      "train",
      file,
      "--model",
      base,
      "--suffix",
      "cli",
      "--set",
      "weight_decay=0.05",
      "--epochs",
      "2",
      "--json",
    ]);
    const run = await until(async () => (await client.runs.list()).data.find((one) => !before.includes(one.id)));
    const stored = await server.world.deps.store.runs.get("default", run.id);
    expect(stored?.request).toMatchObject({
      suffix: "cli",
      hyperparameters: { weight_decay: 0.05, num_train_epochs: 2 },
    });
    const name = await server.finish(run.id);
    const said = await training;
    expect(said.code).toBe(0);
    expect(cli.document(said)).toMatchObject({
      id: run.id,
      status: "succeeded",
      fine_tuned_model: name,
      memory: { predicted_bytes: 1.3e9, parts: { weights: 3e8 }, peak_bytes: 1.2e9 },
    });
    expect(said.stderr).toMatch(/succeeded.*; memory 1\.20 GB \(1\.30 GB expected\)\./);
    expect(said.stderr).toContain(`Try it: fettle chat ${name} "…"`);
    expect(said.stderr).toContain("  step 1  loss 1.0000");
  });

  it("a failed run is 1, with its reason", async () => {
    const before = (await client.runs.list()).data.map((run) => run.id);
    const training = cli.run(["train", file, "--model", base]);
    const run = await until(async () => (await client.runs.list()).data.find((one) => !before.includes(one.id)));
    const error = { code: "training_diverged" as const, message: "The loss became NaN at step 3.", param: null };
    await server.world.deps.store.runs.update(run.id, (now) => ({
      run: { ...now, status: "failed", error, finishedAt: Date.now() },
      events: [],
    }));
    const said = await training;
    expect(said).toMatchObject({ code: 1, stdout: "" });
    expect(said.stderr).toContain("error (training_diverged): The loss became NaN at step 3.");
  });

  it("Ctrl-C detaches with 130 and leaves the run alone", async () => {
    const interrupt = new AbortController();
    const before = (await client.runs.list()).data.map((run) => run.id);
    const training = cli.run(["train", file, "--model", base], { interrupt });
    const run = await until(async () => (await client.runs.list()).data.find((one) => !before.includes(one.id)));
    await until(async () => server.seen.find((request) => request.path.startsWith(`/api/runs/${run.id}/events`)));
    interrupt.abort();
    const said = await training;
    expect(said.code).toBe(130);
    expect(said.stderr).toContain(`Detached: ${run.id} goes on without this terminal.`);
    expect((await client.runs.get(run.id)).status).toBe("validating_files");
  });

  it("a run that pauses by itself ends the command with 1, its reason and the way on", async () => {
    const before = (await client.runs.list()).data.map((run) => run.id);
    const training = cli.run(["train", file, "--model", base, "--json"]);
    const run = await until(async () => (await client.runs.list()).data.find((one) => !before.includes(one.id)));
    const event = {
      id: "ftevent-pause",
      key: "paused",
      createdAt: Date.now(),
      level: "warn" as const,
      type: "message" as const,
      message: "The run is paused",
      data: null,
    };
    await server.world.deps.store.runs.update(run.id, (now) => ({
      run: { ...now, status: "paused", waiting: "The disk is full." },
      events: [event],
    }));
    const said = await training;
    expect(said.code).toBe(1);
    expect(cli.document(said)).toMatchObject({ id: run.id, status: "paused", waiting: "The disk is full." });
    expect(said.stderr).toContain(`${run.id} is paused: The disk is full.\nGo on with it: fettle resume ${run.id}`);
  });

  it("ps shows runs; stop pauses, resume takes up, stop --cancel ends", async () => {
    const run = await newRun();
    await server.world.deps.store.runs.update(run, (now) => ({ run: { ...now, status: "queued" }, events: [] }));
    expect(await cli.run(["stop", run])).toMatchObject({ code: 0, stdout: `${run} is paused.\n` });
    expect((await cli.run(["ps"])).stdout).toMatch(new RegExp(`${run} +paused`));
    expect(await cli.run(["resume", run])).toMatchObject({ code: 0, stdout: `${run} is queued.\n` });
    expect(cli.document(await cli.run(["stop", run, "--cancel", "--json"]))).toMatchObject({
      id: run,
      status: "cancelled",
    });
    const all = cli.document(await cli.run(["ps", "-a", "--json"])) as { data: { id: string }[] };
    expect(all.data.map((one) => one.id)).toContain(run);
  });

  it("logs are one document; followed, one event a line and the run as the last", async () => {
    const run = await newRun();
    await server.finish(run);
    const whole = cli.document(await cli.run(["logs", run, "--json"])) as { data: { seq: number }[] };
    expect(whole.data.map((event) => event.seq)).toEqual(whole.data.map((_, index) => index + 1));
    const followed = await cli.run(["logs", "-f", run, "--json"]);
    const lines = followed.stdout
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as { object: string });
    expect(lines.slice(0, -1)).toEqual(whole.data);
    expect(lines.at(-1)).toMatchObject({ object: "run", id: run, status: "succeeded" });
    expect((await cli.run(["logs", run])).stdout).toContain("Step 25/25: training loss=0.04");
  });
});
