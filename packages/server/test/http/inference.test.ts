import { chatCompletionChunkSchema, completionSchema } from "@fettle/contract";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import type { ModelRecord } from "../../src/app/ports.js";
import { AppError } from "../../src/domain/error.js";
import { sampleRun } from "../store/samples.js";
import { createWorld, FakeInference, type Json, type World } from "./world.js";

let world: World;
const classifier = "ft:minilm:default:spam:abcd1234";
const adapter = "ft:smollm2-135m-instruct:default::zyxw9876";
beforeAll(async () => {
  world = await createWorld();
  await tune({
    name: classifier,
    baseModel: "minilm",
    task: "classification",
    method: "head",
    labels: ["spam", "ham"],
  });
  await tune({ name: adapter, baseModel: "smollm2-135m-instruct", task: "chat", method: "lora", labels: null });
});
beforeEach(() => Object.assign(world.inference, new FakeInference()));
afterAll(() => world.close());

async function tune(model: Pick<ModelRecord, "name" | "baseModel" | "task" | "method" | "labels">): Promise<void> {
  const file = await world.upload();
  const run = sampleRun({ projectId: "default", trainingFile: file, status: "running" });
  await world.deps.store.runs.create(run, []);
  const lease = await world.deps.store.runs.acquire(run.id, "test", { ttlMs: 60_000 });
  if (lease === null) throw new Error("the lease is taken");
  const record: ModelRecord = {
    ...model,
    projectId: "default",
    runId: run.id,
    artefact: `runs/${run.id}/artefact`,
    artefactSha256: "0".repeat(64),
    createdAt: 1_700_000_000_000,
  };
  await world.deps.store.runs.ingest(lease, { events: [], offset: 1, checkpoints: [], model: record });
}

const chat = (body: object = {}, headers: Record<string, string> = {}) =>
  world.send("POST", "/v1/chat/completions", {
    body: { model: adapter, messages: [{ role: "user", content: "Hi" }], ...body },
    headers,
  });

test("a chat completion has text, usage and a finish reason", async () => {
  const { json, headers } = await chat({ max_completion_tokens: 2, stop: "\n", seed: -1, temperature: 0 });
  expect(json).toMatchObject({
    object: "chat.completion",
    model: adapter,
    choices: [
      {
        index: 0,
        message: { role: "assistant", content: "Hello there ", refusal: null },
        logprobs: null,
        finish_reason: "length",
      },
    ],
    usage: { prompt_tokens: 7, completion_tokens: 2, total_tokens: 9 },
  });
  expect(headers.get("x-request-id")).toMatch(/^req_/);
  const { target, request } = world.inference.requests[0] ?? {};
  expect(target).toMatchObject({ basePath: "/models/smollm2", family: "decoder", task: "chat" });
  expect(target?.adapterPath).toMatch(/artefact$/);
  expect(request).toMatchObject({
    maxTokens: 2,
    stop: ["\n"],
    seed: 2147483647,
    temperature: 0,
    topP: 1,
    logprobs: null,
    jsonMode: false,
  });
});

test("max_tokens counts when max_completion_tokens is absent, JSON mode is passed on, text parts are joined", async () => {
  await chat({
    max_tokens: 1,
    response_format: { type: "json_object" },
    messages: [
      {
        role: "user",
        content: [
          { type: "text", text: "a" },
          { type: "text", text: "b" },
        ],
      },
    ],
  });
  expect(world.inference.requests[0]?.request).toMatchObject({
    maxTokens: 1,
    jsonMode: true,
    prompt: { messages: [{ role: "user", content: "ab" }] },
  });
});

test("n answers share one prompt and have seeds of their own", async () => {
  const { json } = await chat({ n: 3, seed: 5 });
  expect(json.choices.map((choice: Json) => choice.index)).toEqual([0, 1, 2]);
  expect(json.usage).toEqual({ prompt_tokens: 7, completion_tokens: 9, total_tokens: 16 });
  expect(world.inference.requests.map(({ request }) => request.seed).sort()).toEqual([5, 6, 7]);
});

test("logprobs come with bytes and as many alternatives as asked", async () => {
  const { json } = await chat({ logprobs: true, top_logprobs: 2, max_tokens: 1 });
  const [entry] = json.choices[0].logprobs.content;
  expect(entry).toMatchObject({ token: "Hello ", logprob: -0.5, bytes: [72, 101, 108, 108, 111, 32] });
  expect(entry.top_logprobs).toHaveLength(2);
});

function frames(text: string): Json[] {
  const lines = text.split("\n\n").filter((line) => line !== "");
  expect(lines.at(-1)).toBe("data: [DONE]");
  return lines.slice(0, -1).map((line) => JSON.parse(line.replace(/^data: /, "")));
}

test("a stream is chunks of the contract, usage last when asked, then [DONE]", async () => {
  const { text, headers } = await chat({ stream: true, stream_options: { include_usage: true } });
  expect(headers.get("content-type")).toBe("text/event-stream; charset=utf-8");
  const chunks = frames(text).map((chunk) => chatCompletionChunkSchema.parse(chunk));
  expect(chunks[0]?.choices[0]?.delta).toEqual({ role: "assistant", content: "", refusal: null });
  expect(chunks.flatMap((chunk) => chunk.choices.map((choice) => choice.delta.content ?? "")).join("")).toBe(
    "Hello there friend",
  );
  expect(chunks.at(-2)?.choices[0]?.finish_reason).toBe("stop");
  expect(chunks.at(-1)).toMatchObject({
    choices: [],
    usage: { prompt_tokens: 7, completion_tokens: 3, total_tokens: 10 },
  });
  expect(new Set(chunks.map((chunk) => chunk.id)).size).toBe(1);
  const plain = frames((await chat({ stream: true })).text);
  expect(plain.every((chunk) => !("usage" in chunk))).toBe(true);
});

test("a refusal before the first token is a status, one after it is an error frame", async () => {
  world.inference.failure = new AppError(
    "rate_limit_exceeded",
    "64 requests are waiting for this model. Wait 2 seconds.",
    { details: { retryAfterSeconds: 2 } },
  );
  for (const stream of [true, false]) {
    const { status, headers, json } = await chat({ stream });
    expect(status).toBe(429);
    expect(json.error).toMatchObject({ code: "rate_limit_exceeded", type: "rate_limit_error" });
    expect(headers.get("retry-after")).toBe("2");
    expect(headers.get("x-should-retry")).toBe("true");
  }
  world.inference.failure = new AppError("inference_failed", "The model process died. Send the request again.");
  world.inference.failAfter = 1;
  const { status, text } = await chat({ stream: true });
  expect(status).toBe(200);
  const last = JSON.parse(
    text
      .trim()
      .split("\n\n")
      .at(-1)
      ?.replace(/^data: /, "") ?? "",
  );
  expect(last.error).toMatchObject({ code: "inference_failed", type: "server_error" });
  expect((await chat()).status).toBe(500);
});

test("a prompt too long for the context is refused with its code", async () => {
  world.inference.failure = new AppError(
    "context_length_exceeded",
    "The prompt has 70 tokens, the context 64. Shorten the messages.",
  );
  expect((await chat()).json.error).toMatchObject({ code: "context_length_exceeded" });
});

test("a client that leaves stops the generation", async () => {
  world.inference.hold = new Promise(() => undefined);
  const controller = new AbortController();
  const response = await world.router.app.request("/v1/chat/completions", {
    method: "POST",
    headers: { authorization: `Bearer ${world.key}`, "content-type": "application/json" },
    body: JSON.stringify({ model: adapter, stream: true, n: 2, messages: [{ role: "user", content: "Hi" }] }),
    signal: controller.signal,
  });
  const reader = response.body?.getReader();
  await reader?.read();
  expect(world.inference.running).toBeGreaterThan(0);
  await reader?.cancel();
  await expect.poll(() => world.inference.running).toBe(0);
});

test("a tuned classifier answers a chat with its label, and the label's probability as logprob", async () => {
  const { json } = await chat({ model: classifier, logprobs: true, top_logprobs: 2 });
  const [choice] = json.choices;
  expect(choice.message.content).toBe("spam");
  expect(Math.exp(choice.logprobs.content[0].logprob)).toBeCloseTo(0.75);
  expect(choice.logprobs.content[0].top_logprobs.map((top: Json) => top.token)).toEqual(["spam", "ham"]);
  expect(json.usage).toEqual({ prompt_tokens: 3, completion_tokens: 1, total_tokens: 4 });
  expect(frames((await chat({ model: classifier, stream: true })).text)[1].choices[0].delta.content).toBe("spam");
});

test("a seq2seq model gets the last user message as its text", async () => {
  await chat({
    model: "org/tiny-t5",
    messages: [
      { role: "system", content: "x" },
      { role: "user", content: "translate" },
    ],
  });
  expect(world.inference.requests[0]).toMatchObject({
    target: { task: "seq2seq" },
    request: { prompt: { text: "translate" } },
  });
});

const refusals: [name: string, body: object, error: object][] = [
  ["an unknown model", { model: "gpt-4o" }, { code: "model_not_found" }],
  [
    "tools",
    { tools: [{ type: "function", function: { name: "f" } }] },
    { code: "unsupported_parameter", param: "tools" },
  ],
  [
    "json_schema",
    { response_format: { type: "json_schema", json_schema: {} } },
    {
      code: "unsupported_parameter",
      param: "response_format.type",
      message:
        '`response_format.type` is not supported here. Use {"type":"json_object"} and give the schema in a message.',
    },
  ],
  [
    "a picture",
    { messages: [{ role: "user", content: [{ type: "image_url", image_url: { url: "http://127.0.0.1/x" } }] }] },
    { code: "unsupported_parameter", param: "messages[0].content[0].type" },
  ],
  ["an encoder", { model: "minilm" }, { code: "unsupported_parameter", param: "model" }],
  [
    "no messages",
    { messages: [] },
    { code: "value_out_of_range", param: "messages", message: "`messages` is a list of 0: expected at least 1 items." },
  ],
  [
    "a wrong role",
    { messages: [{ role: "bot", content: "x" }] },
    { code: "invalid_request", param: "messages[0].role" },
  ],
  [
    "a user message without content",
    { messages: [{ role: "user" }] },
    { code: "invalid_request", param: "messages[0].content" },
  ],
  [
    "temperature 3",
    { temperature: 3 },
    { code: "value_out_of_range", message: "`temperature` is 3: expected at most 2." },
  ],
  [
    "a million answers",
    { n: 1_000_000 },
    { code: "value_out_of_range", message: "`n` is 1000000: expected at most 128." },
  ],
  ["top_logprobs without logprobs", { top_logprobs: 2 }, { code: "invalid_request", param: "top_logprobs" }],
  [
    "a misspelt parameter",
    { temprature: 1 },
    { code: "unknown_field", message: '`temprature` is not known. Did you mean "temperature"?' },
  ],
];
test.each(refusals)("refused in a chat: %s", async (_name, body, error) => {
  expect((await chat(body)).json.error).toMatchObject(error);
  expect(world.inference.requests).toHaveLength(0);
});

test("parameters without effect are accepted", async () => {
  expect(
    (
      await chat({
        user: "u",
        store: true,
        metadata: { a: "b" },
        service_tier: "auto",
        parallel_tool_calls: false,
        tools: [],
        reasoning_effort: "low",
        stream_options: null,
      })
    ).status,
  ).toBe(200);
});

const complete = (body: object) =>
  world.send("POST", "/v1/completions", { body: { model: adapter, prompt: "Once", ...body } });

test("completions answer texts, lists of texts and tokens, each n times", async () => {
  const { json } = await complete({ prompt: ["a", "b"], n: 2, logprobs: 1, max_tokens: 2 });
  expect(json.choices.map((choice: Json) => choice.index)).toEqual([0, 1, 2, 3]);
  expect(json.usage).toEqual({ prompt_tokens: 14, completion_tokens: 8, total_tokens: 22 });
  expect(json.choices[0].logprobs).toEqual({
    tokens: ["Hello ", "there "],
    token_logprobs: [-0.5, -0.5],
    top_logprobs: [{ "Hello ": -0.5 }, { "there ": -0.5 }],
    text_offset: [0, 6],
  });
  world.inference.requests = [];
  await complete({ prompt: [1, 2, 3], echo: true });
  expect(world.inference.requests[0]?.request).toMatchObject({
    prompt: { tokens: [1, 2, 3] },
    maxTokens: 16,
    echo: true,
  });
  const streamed = frames((await complete({ stream: true })).text).map((chunk) => completionSchema.parse(chunk));
  expect(streamed.map((chunk) => chunk.choices[0]?.text).join("")).toBe("Hello there friend");
});

test("completions refuse what they cannot do", async () => {
  expect((await complete({ best_of: 5 })).json.error).toMatchObject({
    code: "unsupported_parameter",
    param: "best_of",
  });
  expect((await complete({ suffix: "end" })).json.error).toMatchObject({
    code: "unsupported_parameter",
    param: "suffix",
  });
  expect((await complete({ prompt: Array.from({ length: 128 }, () => "x"), n: 2 })).json.error).toMatchObject({
    code: "value_out_of_range",
    param: "n",
  });
  expect((await complete({ model: classifier })).json.error.param).toBe("model");
});

test("embeddings are base64 of little-endian float32, or floats", async () => {
  const send = (body: object) =>
    world.send("POST", "/v1/embeddings", { body: { model: "minilm", input: ["a", "b"], ...body } });
  const { json } = await send({ encoding_format: "base64" });
  const bytes = Buffer.from(json.data[1].embedding, "base64");
  expect([0, 4, 8].map((at) => bytes.readFloatLE(at))).toEqual([1.5, -1, 0.25]);
  expect(json.usage).toEqual({ prompt_tokens: 4, total_tokens: 4 });
  expect((await send({})).json.data[0].embedding).toEqual([0.5, -1, 0.25, Math.fround(1e-3)]);
  world.inference.embedded = [];
  await send({ input: [1, 2] });
  await send({ input: [[1], [2]] });
  expect(world.inference.embedded).toEqual([[[1, 2]], [[1], [2]]]);
  expect((await send({ dimensions: 4 })).status).toBe(200);
  expect((await send({ dimensions: 2 })).json.error).toMatchObject({
    code: "unsupported_parameter",
    param: "dimensions",
  });
  expect((await send({ input: [] })).json.error.code).toBe("value_out_of_range");
});

test("classify gives every label with its probability", async () => {
  const send = (body: object) =>
    world.send("POST", "/api/classify", { body: { model: classifier, input: ["buy now", "hello"], ...body } });
  expect((await send({})).json).toMatchObject({
    model: classifier,
    data: [{ index: 0, label: "spam", probability: 0.75, scores: world.inference.labels }, { index: 1 }],
    usage: { prompt_tokens: 6 },
  });
  expect((await send({ model: "minilm" })).json.error).toMatchObject({ code: "unsupported_parameter", param: "model" });
  world.inference.classified = [];
  await send({ input: { text: "It rains.", text_pair: "It is wet." } });
  await send({ input: ["a", { text: "b" }] });
  expect(world.inference.classified).toEqual([[{ text: "It rains.", second: "It is wet." }], ["a", "b"]]);
  expect((await send({ input: { text_pair: "b" } })).status).toBe(400);
});

test("models: listed, found by %2F, by a raw slash and with colons, deleted only when tuned", async () => {
  const { json } = await world.send("GET", "/v1/models");
  expect(json.data.map((model: Json) => model.id)).toEqual([
    "smollm2-135m-instruct",
    "minilm",
    "org/tiny-t5",
    classifier,
    adapter,
  ]);
  for (const path of ["org%2Ftiny-t5", "org/tiny-t5"])
    expect((await world.send("GET", `/v1/models/${path}`)).json.id).toBe("org/tiny-t5");
  expect((await world.send("GET", `/v1/models/${adapter}`)).json).toEqual({
    id: adapter,
    object: "model",
    created: 1_700_000_000,
    owned_by: "default",
  });
  expect((await world.send("GET", "/v1/models/org%252Ftiny-t5")).json.error.code).toBe("model_not_found");
  expect((await world.send("DELETE", "/v1/models/minilm")).json.error).toMatchObject({
    code: "permission_denied",
    message: '"minilm" is a base model: only tuned models can be deleted.',
  });
  await tune({
    name: "ft:minilm:default::gone0000",
    baseModel: "minilm",
    task: "classification",
    method: "head",
    labels: ["a", "b"],
  });
  expect((await world.send("DELETE", "/v1/models/ft:minilm:default::gone0000")).json.deleted).toBe(true);
  expect((await world.send("DELETE", "/v1/models/ft:minilm:default::gone0000")).status).toBe(404);
  const own = await world.send("GET", "/api/models");
  expect(own.json.data.map((model: Json) => model.kind)).toEqual(["tuned", "tuned", "base", "base", "base"]);
});
