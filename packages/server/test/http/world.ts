/**
 * The real app over the real store and real files; models and catalogue are small fakes of their ports.
 * Every JSON answer is checked against the schema its route documents, so each test is a contract test too.
 */
import { errorBodySchema, type Prediction } from "@fettle/contract";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { AppDeps } from "../../src/app/deps.js";
import { createKey } from "../../src/app/keys.js";
import type {
  AskedText,
  Background,
  BaseModel,
  Catalogue,
  Clock,
  FileRecord,
  Inference,
  InferenceTarget,
  Log,
} from "../../src/app/ports.js";
import { localBlobs } from "../../src/blobs/local.js";
import { createApp } from "../../src/http/app.js";
import type { HttpDeps } from "../../src/http/deps.js";
import type { Router } from "../../src/http/endpoint.js";
import { connectStore } from "../../src/store/open.js";
import { systemClock, systemIds } from "../../src/system.js";
import { createTestDatabase } from "../database.js";
import { FakeExporter } from "../fake-exporter.js";

export const baseModels: BaseModel[] = [
  {
    name: "smollm2-135m-instruct",
    family: "decoder",
    path: "/models/smollm2",
    numParameters: 135e6,
    hiddenSize: 4,
    numLayers: 30,
    vocabSize: 49152,
    contextLength: 64,
    licence: "Apache-2.0",
    source: "bundled",
  },
  {
    name: "minilm",
    family: "encoder",
    path: "/models/minilm",
    numParameters: 22e6,
    hiddenSize: 4,
    numLayers: 6,
    vocabSize: 30522,
    contextLength: 512,
    licence: "Apache-2.0",
    source: "bundled",
  },
  {
    name: "org/tiny-t5",
    family: "seq2seq",
    path: "/models/t5",
    numParameters: 5e6,
    hiddenSize: 4,
    numLayers: 2,
    vocabSize: 1000,
    contextLength: 512,
    licence: "MIT",
    source: "local",
  },
];

const catalogue: Catalogue = {
  list: async () => baseModels,
  find: async (name) => baseModels.find((model) => model.name === name) ?? null,
  prepare: async (name) => {
    throw new Error(`nothing to prepare for ${name}`);
  },
};

/** Marks a file as read, as the real background does when a file has no fault. */
function background(store: AppDeps["store"]): Background {
  return {
    processFile: (projectId, fileId) =>
      store.files.setProcessed(projectId, fileId, { status: "processed", statusDetails: null, report: null }),
    close: async () => undefined,
  };
}

export interface World {
  router: Router;
  deps: HttpDeps;
  inference: FakeInference;
  exporter: FakeExporter;
  logged: object[];
  /** Milliseconds; added to the real clock. */
  advance(ms: number): void;
  /** The key of an admin of project "default"; sent unless `key` is given. */
  key: string;
  newKey(projectId: string, role?: "admin" | "member"): Promise<string>;
  send(method: string, path: string, options?: SendOptions): Promise<Answer>;
  upload(text?: string, options?: { purpose?: string; filename?: string; key?: string }): Promise<FileRecord["id"]>;
  close(): Promise<void>;
}
export interface SendOptions {
  body?: unknown;
  key?: string | null;
  headers?: Record<string, string>;
}
/** Answers are checked against their schemas; tests may then look anywhere inside. */
// biome-ignore lint/suspicious/noExplicitAny: a test asks for what the contract check has already proved
export type Json = any;
export interface Answer {
  status: number;
  headers: Headers;
  text: string;
  /** Parsed JSON, or undefined. */
  json: Json;
}

export async function createWorld(): Promise<World> {
  const database = await createTestDatabase();
  const home = await mkdtemp(join(tmpdir(), "fettle-http-"));
  const store = await connectStore(database.url);
  let offset = 0;
  const logged: object[] = [];
  const note = (fields: object, message: string): void => void logged.push({ ...fields, message });
  const log: Log = { info: note, warn: note, error: note };
  const clock: Clock = { ...systemClock, now: () => Date.now() + offset };
  const inference = new FakeInference();
  const exporter = new FakeExporter();
  const deps: HttpDeps = {
    store,
    blobs: localBlobs(join(home, "blobs")),
    inference,
    catalogue,
    exporter,
    background: background(store),
    clock,
    ids: systemIds,
    log,
    settings: { version: "0.1.0", startedAt: clock.now(), allowedHosts: ["fettle.example.org"], home, pricePerHour: 3 },
  };
  const router = createApp(deps);
  const newKey = async (projectId: string, role: "admin" | "member" = "member"): Promise<string> =>
    (await createKey(deps, { projectId, name: "test", role })).secret;
  const key = await newKey("default", "admin");
  const send = (method: string, path: string, options: SendOptions = {}): Promise<Answer> =>
    sendTo(router, { method, path, key, ...options });
  return {
    router,
    deps,
    inference,
    exporter,
    logged,
    key,
    newKey,
    send,
    advance: (ms) => {
      offset += ms;
    },
    upload: async (text = '{"messages":[]}\n', options = {}) => {
      const form = new FormData();
      form.set("purpose", options.purpose ?? "fine-tune");
      form.set("file", new File([text], options.filename ?? "train.jsonl"));
      const answer = await send("POST", "/v1/files", { body: form, ...(options.key && { key: options.key }) });
      if (answer.status !== 200) throw new Error(answer.text);
      return answer.json.id;
    },
    close: async () => {
      await store.close();
      await database.drop();
      await rm(home, { recursive: true, force: true });
    },
  };
}

async function sendTo(router: Router, request: { method: string; path: string } & SendOptions): Promise<Answer> {
  const { method, path, body, key } = request;
  const headers = new Headers(request.headers);
  if (key != null) headers.set("authorization", `Bearer ${key}`);
  const raw =
    body instanceof FormData ||
    typeof body === "string" ||
    body instanceof ReadableStream ||
    body instanceof Uint8Array;
  if (body !== undefined && !raw && !headers.has("content-type")) headers.set("content-type", "application/json");
  const init: Record<string, unknown> = {
    method,
    headers,
    ...(body !== undefined && { body: raw ? body : JSON.stringify(body), duplex: "half" }),
  };
  const response = await router.app.request(path, init as RequestInit);
  const text = await response.text();
  const isJson = text !== "" && (response.headers.get("content-type")?.startsWith("application/json") ?? false);
  const json: unknown = isJson ? JSON.parse(text) : undefined;
  if (isJson) checkContract(router, { method, path, status: response.status, json });
  return { status: response.status, headers: response.headers, text, json };
}

/** Fails the test when an answer is not what its route documents. */
export function checkContract(
  router: Router,
  answer: { method: string; path: string; status: number; json: unknown },
): void {
  const path = new URL(answer.path, "http://localhost").pathname;
  const route = router.declared.find((one) => one.method === answer.method.toLowerCase() && one.pattern.test(path));
  const schema = answer.status === 200 ? route?.response : errorBodySchema;
  const parsed = schema?.safeParse(answer.json);
  if (parsed && !parsed.success) {
    throw new Error(
      `${answer.method} ${path} -> ${answer.status} breaks its contract: ${parsed.error.message}\n${JSON.stringify(answer.json)}`,
    );
  }
}

/** Says what it is told to, one word a chunk, and keeps what it was asked. */
export class FakeInference implements Inference {
  answer = "Hello there friend";
  /** Thrown before the first chunk, or after `failAfter` deltas. */
  failure: Error | null = null;
  failAfter = 0;
  labels = [
    { label: "spam", probability: 0.75 },
    { label: "ham", probability: 0.25 },
  ];
  requests: { target: InferenceTarget; request: Parameters<Inference["generate"]>[1] }[] = [];
  embedded: (string | number[])[][] = [];
  asked: AskedText[][] = [];
  classified: (string | AskedText)[][] = [];
  prediction: Prediction = { score: 2.5 };
  running = 0;
  /** When set, generation waits for it after the first delta. */
  hold: Promise<void> | null = null;

  async *generate(
    target: InferenceTarget,
    request: Parameters<Inference["generate"]>[1],
    signal: AbortSignal,
  ): ReturnType<Inference["generate"]> {
    this.requests.push({ target, request });
    this.running += 1;
    try {
      if (this.failure && this.failAfter === 0) throw this.failure;
      yield { type: "start", promptTokens: 7 };
      const words = this.answer.split(/(?<= )/);
      const shown = words.slice(0, request.maxTokens ?? words.length);
      for (const [index, text] of shown.entries()) {
        if (this.failure && index === this.failAfter) throw this.failure;
        if (signal.aborted) return;
        const token = { token: text, bytes: [...Buffer.from(text)], logprob: -0.5 };
        const top = Array.from({ length: request.logprobs ?? 0 }, () => token);
        yield { type: "delta", text, logprobs: request.logprobs === null ? [] : [{ ...token, top }] };
        if (this.hold && !signal.aborted)
          await Promise.race([this.hold, new Promise((resolve) => signal.addEventListener("abort", resolve))]);
      }
      yield {
        type: "end",
        finishReason: shown.length < words.length ? "length" : "stop",
        promptTokens: 7,
        completionTokens: shown.length,
      };
    } finally {
      this.running -= 1;
    }
  }

  async classify(_target: InferenceTarget, texts: (string | AskedText)[]): ReturnType<Inference["classify"]> {
    this.classified.push(texts);
    return { scores: texts.map(() => this.labels), numTokens: texts.length * 3 };
  }

  async predict(_target: InferenceTarget, inputs: AskedText[]): ReturnType<Inference["predict"]> {
    this.asked.push(inputs);
    return { predictions: inputs.map(() => this.prediction), numTokens: inputs.length * 4 };
  }

  async embed(_target: InferenceTarget, inputs: (string | number[])[]): ReturnType<Inference["embed"]> {
    this.embedded.push(inputs);
    return {
      vectors: inputs.map((_, index) => Float32Array.from([index + 0.5, -1, 0.25, 1e-3])),
      numTokens: inputs.length * 2,
    };
  }

  loaded(): ReturnType<Inference["loaded"]> {
    return [{ basePath: "/secret/place/models/minilm", adapters: ["one"], rssBytes: 1e8, busy: 0 }];
  }

  async close(): Promise<void> {}
}
