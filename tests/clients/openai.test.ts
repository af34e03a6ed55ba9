/** The official npm client, both majors, unmodified: everything a user of fine-tuning calls. */
import OpenAI6, { toFile as toFile6 } from "openai";
import OpenAI7, { toFile as toFile7 } from "openai-7";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type ClientServer, startClientServer } from "./server.js";

let server: ClientServer;
beforeAll(async () => {
  server = await startClientServer();
});
afterAll(() => server.close());

const rows = Array.from({ length: 12 }, (_, index) =>
  JSON.stringify({
    messages: [
      { role: "user", content: `q${index}` },
      { role: "assistant", content: "a" },
    ],
  }),
).join("\n");
const base = "smollm2-135m-instruct";

describe.each([
  ["openai 6", OpenAI6, toFile6],
  ["openai 7", OpenAI7 as unknown as typeof OpenAI6, toFile7 as unknown as typeof toFile6],
])("%s", (_name, OpenAI, toFile) => {
  const client = (options: object = {}) => new OpenAI({ baseURL: server.baseURL, apiKey: server.apiKey, ...options });
  const upload = async () =>
    client().files.create({ file: await toFile(Buffer.from(rows), "train.jsonl"), purpose: "fine-tune" });

  test("files: create, wait, list, content, delete", async () => {
    const file = await upload();
    expect((await client().files.waitForProcessing(file.id, { pollInterval: 20 })).status).toBe("processed");
    expect(await (await client().files.content(file.id)).text()).toBe(rows);
    const ids: string[] = [];
    for await (const item of client().files.list({ limit: 1, purpose: "fine-tune" })) ids.push(item.id);
    expect(ids).toContain(file.id);
    expect((await client().files.delete(file.id)).deleted).toBe(true);
    await expect(client().files.retrieve(file.id)).rejects.toMatchObject({
      status: 404,
      code: "not_found",
      type: "invalid_request_error",
    });
  });

  test("uploads: parts, complete, cancel", async () => {
    const upload = await client().uploads.create({
      filename: "big.jsonl",
      purpose: "fine-tune",
      bytes: 10,
      mime_type: "application/jsonl",
    });
    const parts: string[] = [];
    for (const text of ["hello", "world"])
      parts.push(
        (await client().uploads.parts.create(upload.id, { data: await toFile(Buffer.from(text), "part") })).id,
      );
    const done = await client().uploads.complete(upload.id, { part_ids: parts });
    expect(done.status).toBe("completed");
    expect(done.file?.bytes).toBe(10);
    const other = await client().uploads.create({
      filename: "x",
      purpose: "fine-tune",
      bytes: 1,
      mime_type: "text/plain",
    });
    expect((await client().uploads.cancel(other.id)).status).toBe("cancelled");
  });

  test("a job from creation to its model, with events and checkpoints paged", async () => {
    const file = await upload();
    const job = await client().fineTuning.jobs.create({
      model: base,
      training_file: file.id,
      suffix: "x",
      metadata: { a: "b" },
      method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 2, batch_size: "auto" } } },
    });
    expect(job).toMatchObject({ status: "queued", result_files: [], error: null, hyperparameters: { n_epochs: 2 } });
    const name = await server.finish(job.id);
    const done = await client().fineTuning.jobs.retrieve(job.id);
    expect(done).toMatchObject({ status: "succeeded", fine_tuned_model: name, trained_tokens: 1234 });
    const events: string[] = [];
    for await (const event of client().fineTuning.jobs.listEvents(job.id, { limit: 10 })) events.push(event.message);
    expect(events[0]).toContain("Step 25/25");
    expect(events.length).toBe(new Set(events).size);
    expect(events.at(-1)).toContain("Created fine-tuning job");
    const checkpoints: number[] = [];
    for await (const checkpoint of client().fineTuning.jobs.checkpoints.list(job.id, { limit: 1 }))
      checkpoints.push(checkpoint.step_number);
    expect(checkpoints).toEqual([2, 1]);
    const listed: string[] = [];
    for await (const item of client().fineTuning.jobs.list({ limit: 2, metadata: { a: "b" } })) listed.push(item.id);
    expect(listed).toContain(job.id);
    for await (const item of client().fineTuning.jobs.list({ metadata: null })) listed.push(item.id);
    expect((await client().models.retrieve(name)).id).toBe(name);
    expect((await client().models.delete(name)).deleted).toBe(true);
    await expect(client().models.retrieve(name)).rejects.toMatchObject({ status: 404, code: "model_not_found" });
  });

  test("cancel, pause, resume; a conflict is not retried", async () => {
    const file = await upload();
    const job = await client().fineTuning.jobs.create({ model: base, training_file: file.id });
    await server.world.deps.store.runs.update(job.id, (run) => ({ run: { ...run, status: "queued" }, events: [] }));
    expect((await client().fineTuning.jobs.pause(job.id)).status).toBe("paused");
    expect((await client().fineTuning.jobs.resume(job.id)).status).toBe("queued");
    expect((await client().fineTuning.jobs.cancel(job.id)).status).toBe("cancelled");
    const before = server.seen.length;
    await expect(client().fineTuning.jobs.cancel(job.id)).rejects.toMatchObject({ status: 409, code: "conflict" });
    expect(server.seen.length - before).toBe(1);
  });

  test("an answer lost twice makes one job: the client retries, the server remembers", async () => {
    const file = await upload();
    server.loseAnswers("POST", "/v1/fine_tuning/jobs", 2);
    const before = (await client().fineTuning.jobs.list({ limit: 100 })).data.length;
    const job = await client().fineTuning.jobs.create({ model: base, training_file: file.id, suffix: "lost" });
    const after = (await client().fineTuning.jobs.list({ limit: 100 })).data;
    expect(after.length - before).toBe(1);
    expect(after[0]?.id).toBe(job.id);
    const tries = server.seen.filter((one) => one.method === "POST" && one.path === "/v1/fine_tuning/jobs").slice(-3);
    expect(tries.map((one) => one.headers["x-stainless-retry-count"])).toEqual(["0", "1", "2"]);
  });

  test("dpo: its hyperparameters go in and come back by OpenAI's names", async () => {
    const file = await upload();
    const asked = { beta: 0.2, n_epochs: 2, batch_size: "auto", learning_rate_multiplier: 0.5 } as const;
    const job = await client().fineTuning.jobs.create({
      model: base,
      training_file: file.id,
      method: { type: "dpo", dpo: { hyperparameters: asked } },
    });
    expect(job.method).toMatchObject({ type: "dpo", dpo: { hyperparameters: asked } });
    const found = await client().fineTuning.jobs.retrieve(job.id);
    expect(found.method?.dpo?.hyperparameters).toMatchObject(asked);
    expect(found.method?.supervised).toBeUndefined();
    await expect(
      client().fineTuning.jobs.create({
        model: base,
        training_file: file.id,
        method: { type: "dpo", dpo: { hyperparameters: { beta: 3 } } },
      }),
    ).rejects.toMatchObject({ status: 400, code: "value_out_of_range", param: "method.dpo.hyperparameters.beta" });
  });

  test("reinforcement is a clear refusal with its code and field", async () => {
    const file = await upload();
    await expect(
      client().fineTuning.jobs.create({ model: base, training_file: file.id, method: { type: "reinforcement" } }),
    ).rejects.toMatchObject({ status: 400, code: "unsupported_method", param: "method.type" });
  });

  test("models: list, and one whose name has a slash", async () => {
    const names: string[] = [];
    for await (const model of client().models.list()) names.push(model.id);
    expect(names).toEqual(expect.arrayContaining([base, "minilm", "org/tiny-t5"]));
    expect((await client().models.retrieve("org/tiny-t5")).id).toBe("org/tiny-t5");
    expect(server.seen.at(-1)?.path).toContain("%2F");
  });

  test("chat: whole, streamed, with logprobs and usage", async () => {
    const messages = [{ role: "user" as const, content: "Hi" }];
    const whole = await client().chat.completions.create({
      model: base,
      messages,
      logprobs: true,
      top_logprobs: 1,
      max_completion_tokens: 2,
    });
    expect(whole.choices[0]?.message.content).toBe("Hello there ");
    expect(whole.choices[0]?.finish_reason).toBe("length");
    expect(whole._request_id).toMatch(/^req_/);
    let text = "";
    let usage = 0;
    for await (const chunk of await client().chat.completions.create({
      model: base,
      messages,
      stream: true,
      stream_options: { include_usage: true },
    })) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage?.total_tokens ?? usage;
    }
    expect([text, usage]).toEqual(["Hello there friend", 10]);
    const final = await client().chat.completions.stream({ model: base, messages }).finalChatCompletion();
    expect(final.choices[0]?.message.content).toBe("Hello there friend");
  });

  test("an error in the middle of a stream is thrown by the client", async () => {
    server.world.inference.failure = new Error("boom");
    server.world.inference.failAfter = 1;
    try {
      const stream = await client().chat.completions.create({
        model: base,
        messages: [{ role: "user", content: "Hi" }],
        stream: true,
      });
      await expect(async () => {
        for await (const chunk of stream) expect(chunk.object).toBe("chat.completion.chunk");
      }).rejects.toThrow("Something went wrong on our side");
    } finally {
      Object.assign(server.world.inference, { failure: null, failAfter: 0 });
    }
  });

  test("leaving a stream stops the generation", async () => {
    server.world.inference.hold = new Promise(() => undefined);
    try {
      const stream = await client().chat.completions.create({
        model: base,
        messages: [{ role: "user", content: "Hi" }],
        stream: true,
      });
      for await (const chunk of stream) {
        if (chunk.choices[0]?.delta.content) break;
      }
      await expect.poll(() => server.world.inference.running).toBe(0);
    } finally {
      server.world.inference.hold = null;
    }
  });

  test("completions and embeddings, whose base64 the client decodes", async () => {
    const done = await client().completions.create({ model: base, prompt: "Once" });
    expect(done.choices[0]?.text).toBe("Hello there friend");
    const vectors = await client().embeddings.create({ model: "minilm", input: ["a", "b"] });
    expect(vectors.data[1]?.embedding).toEqual([1.5, -1, 0.25, Math.fround(1e-3)]);
    const floats = await client().embeddings.create({ model: "minilm", input: "a", encoding_format: "float" });
    expect(floats.data[0]?.embedding[0]).toBe(0.5);
  });

  test("a wrong key is an AuthenticationError, an unknown route tells about /v1", async () => {
    await expect(client({ apiKey: "fettle_no" }).models.list()).rejects.toMatchObject({
      status: 401,
      code: "invalid_api_key",
    });
    await expect(client({ baseURL: server.baseURL.replace("/v1", "") }).models.list()).rejects.toThrow(
      "/openapi.json lists the routes",
    );
  });
});
