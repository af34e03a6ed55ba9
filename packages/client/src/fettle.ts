/** The client: `new Fettle({ baseUrl, apiKey })`. Every method throws FettleError. */
import {
  type ChatCompletion,
  type ChatCompletionChunk,
  chatCompletionChunkSchema,
  chatCompletionSchema,
  type ClassifyRequest,
  type ClassifyResult,
  classifyResultSchema,
  createdKeySchema,
  deletedSchema,
  errorBodySchema,
  healthSchema,
  type KeyObject,
  keyListSchema,
  type ModelObject,
  modelListSchema,
  type PredictRequest,
  type PredictResult,
  predictResultSchema,
  type RequestMessage,
  type StatusObject,
  statusSchema,
} from "@fettle/contract";
import { type ClientOptions, Connection } from "./connection.js";
import { CrossValidations } from "./cross-validations.js";
import { FettleError } from "./error.js";
import { Data, Files } from "./files.js";
import { type ExportedModel, type ExportOptions, exportModel } from "./models.js";
import { Runs } from "./runs.js";
import { readEvents } from "./sse.js";
import { Sweeps } from "./sweeps.js";

/** The parameters of a chat completion that people use by hand; the rest goes by the `openai` client. */
export interface ChatRequest {
  model: string;
  messages: RequestMessage[];
  temperature?: number;
  top_p?: number;
  seed?: number;
  max_completion_tokens?: number;
  stop?: string | string[];
  response_format?: { type: "text" } | { type: "json_object" };
}

export class Fettle {
  readonly files: Files;
  readonly data: Data;
  readonly runs: Runs;
  readonly sweeps: Sweeps;
  readonly crossValidations: CrossValidations;
  readonly chat: Chat;
  readonly keys: Keys;
  private readonly connection: Connection;

  constructor(options: ClientOptions) {
    this.connection = new Connection(options);
    this.files = new Files(this.connection);
    this.data = new Data(this.connection);
    this.runs = new Runs(this.connection);
    this.sweeps = new Sweeps(this.connection);
    this.crossValidations = new CrossValidations(this.connection);
    this.chat = new Chat(this.connection);
    this.keys = new Keys(this.connection);
  }

  get baseUrl(): string {
    return this.connection.baseUrl;
  }

  /** Base models and the project's tuned ones. */
  async models(): Promise<ModelObject[]> {
    return (await this.connection.json({ method: "GET", path: "/api/models" }, modelListSchema)).data;
  }

  /** The files of a tuned model or checkpoint; `merged` folds an adapter into its base. */
  exportModel(name: string, options: ExportOptions = {}): Promise<ExportedModel> {
    return exportModel(this.connection, name, options);
  }

  /** Labels of one text or many, with the probability of each. */
  classify(request: ClassifyRequest, { signal }: { signal?: AbortSignal } = {}): Promise<ClassifyResult> {
    return this.connection.json(
      { method: "POST", path: "/api/classify", json: request, ...(signal && { signal }) },
      classifyResultSchema,
    );
  }

  /** A number, the entities or the answer of each input, from a model tuned for that. */
  predict(request: PredictRequest, { signal }: { signal?: AbortSignal } = {}): Promise<PredictResult> {
    return this.connection.json(
      { method: "POST", path: "/api/predict", json: request, ...(signal && { signal }) },
      predictResultSchema,
    );
  }

  status(): Promise<StatusObject> {
    return this.connection.json({ method: "GET", path: "/api/status" }, statusSchema);
  }

  /** Needs no key. `starting` until the database is up. */
  async health(): Promise<"ok" | "starting"> {
    return (await this.connection.json({ method: "GET", path: "/healthz" }, healthSchema)).status;
  }
}

export class Chat {
  constructor(private readonly connection: Connection) {}

  complete(request: ChatRequest, { signal }: { signal?: AbortSignal } = {}): Promise<ChatCompletion> {
    return this.connection.json(
      { method: "POST", path: "/v1/chat/completions", json: request, ...(signal && { signal }) },
      chatCompletionSchema,
    );
  }

  /** Chunks as they come. Breaking out of the loop stops the generation on the server. */
  async *stream(request: ChatRequest, { signal }: { signal?: AbortSignal } = {}): AsyncGenerator<ChatCompletionChunk> {
    const headers = { accept: "text/event-stream" };
    const json = { ...request, stream: true, stream_options: { include_usage: true } };
    const response = await this.connection.send({
      method: "POST",
      path: "/v1/chat/completions",
      json,
      headers,
      ...(signal && { signal }),
    });
    if (response.body === null) return;
    for await (const { data } of readEvents(response.body as unknown as AsyncIterable<Uint8Array>)) {
      if (data === "[DONE]") return;
      const value: unknown = JSON.parse(data);
      const failed = errorBodySchema.safeParse(value);
      if (failed.success) {
        const { message, code, param } = failed.data.error;
        throw new FettleError(message, {
          status: 500,
          code: code ?? "inference_failed",
          param,
          requestId: response.headers.get("x-request-id"),
        });
      }
      yield chatCompletionChunkSchema.parse(value);
    }
  }
}

export class Keys {
  constructor(private readonly connection: Connection) {}

  /** `key` in the answer is the secret, shown this once. */
  create(request: {
    name: string;
    role?: "admin" | "member";
    expires_in_days?: number;
  }): Promise<KeyObject & { key: string }> {
    return this.connection.json({ method: "POST", path: "/api/keys", json: request }, createdKeySchema);
  }

  async list(): Promise<KeyObject[]> {
    return (await this.connection.json({ method: "GET", path: "/api/keys" }, keyListSchema)).data;
  }

  revoke(keyId: string): Promise<{ id: string; deleted: true }> {
    return this.connection.json({ method: "DELETE", path: `/api/keys/${encodeURIComponent(keyId)}` }, deletedSchema);
  }
}
