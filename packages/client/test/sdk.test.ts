import { mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, describe, expect, it } from "vitest";
import { Fettle, FettleError, type RunNews } from "../src/index.js";
import { fileFromPath } from "../src/node.js";
import { readEvents, type ServerEvent } from "../src/sse.js";
import { type Answer, json, refusal, type ScriptedServer, scriptedServer } from "./scripted-server.js";

const run = {
  id: "ftjob-1",
  object: "run",
  created_at: 1,
  status: "queued",
  wanted: null,
  waiting: null,
  model: "m",
  base_model: "m",
  teacher: null,
  family: "decoder",
  task: null,
  method: null,
  training_file: "file-1",
  validation_file: null,
  hyperparameters: null,
  labels: null,
  estimate: null,
  seed: 1,
  attempt: 0,
  started_at: null,
  finished_at: null,
  step: 0,
  total_steps: null,
  eta_at: null,
  trained_tokens: null,
  memory: null,
  fine_tuned_model: null,
  result_file: null,
  error: null,
  suffix: null,
  metadata: null,
};
const file = {
  id: "file-1",
  object: "file",
  bytes: 3,
  created_at: 1,
  filename: "a.jsonl",
  purpose: "fine-tune",
  status: "uploaded",
};

let server: ScriptedServer;
afterEach(() => server?.close());

async function client(answers: Answer[], maxRetries = 2): Promise<Fettle> {
  server = await scriptedServer(answers);
  return new Fettle({ baseUrl: `${server.url}/v1/`, apiKey: "key", maxRetries });
}
const failure = (promise: Promise<unknown>): Promise<FettleError> =>
  promise.then(
    () => Promise.reject(new Error("it succeeded")),
    (error: FettleError) => error,
  );

describe("requests", () => {
  it("are tried again under one idempotency key, counted, after the time the server asks for", async () => {
    const fettle = await client([
      refusal(500, "internal_error", { "retry-after": "0" }),
      refusal(429, "rate_limit_exceeded", { "retry-after": "0" }),
      json(200, run),
    ]);
    expect(await fettle.runs.create({ model: "m", training_file: "file-1" })).toEqual(run);
    expect(server.asked).toHaveLength(3);
    expect(new Set(server.asked.map((one) => one.headers["idempotency-key"])).size).toBe(1);
    expect(server.asked.map((one) => one.headers["x-stainless-retry-count"])).toEqual([undefined, "1", "2"]);
    expect(server.asked[0]).toMatchObject({
      method: "POST",
      path: "/api/runs",
      headers: { authorization: "Bearer key" },
    });
  });

  it("are not tried again when the server says it is no use", async () => {
    const fettle = await client([refusal(500, "training_failed", { "x-should-retry": "false" })]);
    expect(await failure(fettle.runs.get("ftjob-1"))).toMatchObject({ code: "training_failed", status: 500 });
    expect(server.asked).toHaveLength(1);
  });

  it("carry the server's whole error object", async () => {
    const faults = [{ line: 2, rule: "json_syntax", message: "m", fix: "f" }];
    const fettle = await client([
      json(400, {
        error: {
          message: "Bad.",
          type: "invalid_request_error",
          param: "model",
          code: "invalid_training_file",
          faults,
        },
      }),
    ]);
    const error = await failure(fettle.runs.get("ftjob-1"));
    expect(error).toBeInstanceOf(FettleError);
    expect(error.toJSON()).toEqual({
      code: "invalid_training_file",
      message: "Bad.",
      status: 400,
      param: "model",
      details: { faults },
      request_id: "req_1",
    });
  });

  it("an answer that is not Fettle's is named as such", async () => {
    const fettle = await client([
      (response) => void response.writeHead(404, { "content-type": "text/html" }).end("<h1>no</h1>"),
    ]);
    expect(await failure(fettle.models())).toMatchObject({
      code: "invalid_response",
      status: 404,
      message: expect.stringContaining("Check that the address is a Fettle server."),
    });
    await server.close();
    const other = await client([json(200, { ...run, status: "dancing" })]);
    expect(await failure(other.runs.get("ftjob-1"))).toMatchObject({
      code: "invalid_response",
      message: expect.stringContaining("does not fit the contract at status"),
    });
  });

  it("ids cannot leave their place in the path", async () => {
    const fettle = await client([refusal(404, "not_found")]);
    await failure(fettle.runs.get("../keys?x=1"));
    expect(server.asked[0]?.path).toBe("/api/runs/..%2Fkeys%3Fx%3D1");
  });
});

describe("uploads", () => {
  it("stream a form, and send the whole of it again on a retry", async () => {
    const folder = mkdtempSync(join(tmpdir(), "fettle-sdk-"));
    const path = join(folder, 'a"b.jsonl');
    writeFileSync(path, "one\n");
    const fettle = await client([refusal(503, "database_unavailable", { "retry-after": "0" }), json(200, file)]);
    const seen: number[] = [];
    await fettle.files.upload(await fileFromPath(path), { onProgress: (bytes) => seen.push(bytes) });
    rmSync(folder, { recursive: true });
    const bodies = server.asked.map((one) => one.body.replaceAll(/fettle-[0-9a-f-]{36}/g, "B"));
    expect(bodies[0]).toBe(
      '--B\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--B\r\ncontent-disposition: form-data; name="file"; filename="a%22b.jsonl"\r\ncontent-type: application/octet-stream\r\n\r\none\n\r\n--B--\r\n',
    );
    expect(bodies[1]).toBe(bodies[0]);
    expect(seen).toEqual([4, 4]);
  });

  it("over 512 MB go in parts of 64 MB, in order", async () => {
    const folder = mkdtempSync(join(tmpdir(), "fettle-sdk-"));
    const path = join(folder, "big.jsonl");
    const size = 512 * 1024 * 1024 + 5;
    writeFileSync(path, "");
    truncateSync(path, size);
    const upload = {
      id: "upload_1",
      object: "upload",
      bytes: size,
      created_at: 1,
      expires_at: 2,
      filename: "big.jsonl",
      purpose: "fine-tune",
      status: "pending",
    };
    const source = await fileFromPath(path);
    // The bytes themselves are not needed: each part is replaced by a word that names its range.
    const ranges: string[] = [];
    const read: typeof source.read = async function* (range) {
      ranges.push(`${range?.start}-${range?.end}`);
      yield new TextEncoder().encode("part");
    };
    let parts = 0;
    const fettle = await client([
      (response, asked) => {
        if (asked.path.endsWith("/parts"))
          return json(200, { id: `part_${++parts}`, object: "upload.part", created_at: 1, upload_id: "upload_1" })(
            response,
            asked,
          );
        return json(200, asked.path.endsWith("/complete") ? { ...upload, status: "completed", file } : upload)(
          response,
          asked,
        );
      },
    ]);
    expect(await fettle.files.upload({ ...source, read })).toEqual(file);
    rmSync(folder, { recursive: true });
    expect(ranges).toHaveLength(9);
    expect([ranges[0], ranges[8]]).toEqual(["0-67108864", `536870912-${size}`]);
    expect(JSON.parse(server.asked.at(-1)?.body ?? "")).toEqual({
      part_ids: Array.from({ length: 9 }, (_, index) => `part_${index + 1}`),
    });
  });
});

const event = (seq: number) => ({
  id: `e${seq}`,
  object: "run.event",
  run_id: "ftjob-1",
  seq,
  created_at: 1,
  level: "info",
  type: "message",
  message: `${seq}`,
  data: null,
});
const frame = (seq: number): string => `id: ${seq}\nevent: run.event\ndata: ${JSON.stringify(event(seq))}\n\n`;
const stream =
  (text: string, end: "end" | "cut" = "end"): Answer =>
  (response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.write(text, () => (end === "end" ? response.end() : response.destroy()));
  };

describe("following a run", () => {
  it("goes on after the last event over cut streams and failing servers; no event twice or missing", async () => {
    const ended = `event: run.ended\ndata: ${JSON.stringify({ ...run, status: "succeeded" })}\n\n`;
    const fettle = await client(
      [
        stream(frame(1) + frame(2) + frame(3).slice(0, 20), "cut"),
        refusal(503, "database_unavailable"),
        stream(`: quiet\n\n${frame(2)}${frame(3)}`),
        stream(frame(4) + ended),
      ],
      0,
    );
    const news: RunNews[] = [];
    for await (const one of fettle.runs.follow("ftjob-1")) news.push(one);
    expect(news.map((one) => (one.type === "event" ? one.event.seq : one.run.status))).toEqual([
      1,
      2,
      3,
      4,
      "succeeded",
    ]);
    expect(server.asked.map((one) => one.headers["last-event-id"])).toEqual(["0", "2", "2", "3"]);
  });

  it("ends at once when the run is unknown", async () => {
    const fettle = await client([refusal(404, "not_found")]);
    expect(await failure(fettle.runs.follow("ftjob-1").next())).toMatchObject({ code: "not_found" });
    expect(server.asked).toHaveLength(1);
  });
});

describe("chat", () => {
  it("a stream that fails midway throws the server's error", async () => {
    const chunk = {
      id: "c",
      object: "chat.completion.chunk",
      created: 1,
      model: "m",
      system_fingerprint: "fettle",
      choices: [{ index: 0, delta: { content: "Hi" }, logprobs: null, finish_reason: null }],
    };
    const error = {
      error: { message: "The model process died.", type: "server_error", param: null, code: "inference_failed" },
    };
    const fettle = await client([stream(`data: ${JSON.stringify(chunk)}\n\ndata: ${JSON.stringify(error)}\n\n`)]);
    const answer = fettle.chat.stream({ model: "m", messages: [{ role: "user", content: "x" }] });
    expect((await answer.next()).value).toEqual(chunk);
    expect(await failure(answer.next())).toMatchObject({
      code: "inference_failed",
      message: "The model process died.",
    });
  });
});

describe("server-sent events", () => {
  it("read the same however the bytes are cut", async () => {
    const bytes = new TextEncoder().encode(
      'id: 1\r\nevent: a\r\ndata: {"x":"ä"}\r\n\r\n: note\n\ndata: one\ndata: two\n\ndata: torn',
    );
    const expected = [
      { event: "a", id: "1", data: '{"x":"ä"}' },
      { event: "message", id: "1", data: "one\ntwo" },
    ];
    await fc.assert(
      fc.asyncProperty(fc.uniqueArray(fc.integer({ min: 1, max: bytes.length - 1 })), async (cuts) => {
        const ends = [...cuts.sort((left, right) => left - right), bytes.length];
        async function* pieces() {
          for (const [index, end] of ends.entries()) yield bytes.subarray(ends[index - 1] ?? 0, end);
        }
        const events: ServerEvent[] = [];
        for await (const one of readEvents(pieces())) events.push(one);
        expect(events).toEqual(expected);
      }),
    );
  });
});
