/** Requests with retries. A request that creates something carries one Idempotency-Key over all its tries. */
import { errorBodySchema } from "@fettle/contract";
import type { z } from "zod";
import { errorFrom, FettleError } from "./error.js";

export interface ClientOptions {
  /** Such as `http://127.0.0.1:4141`, without `/v1`. */
  baseUrl: string;
  apiKey: string;
  /** Tries after the first, on network failures, 429 and 5xx the server calls worth it. Default 2. */
  maxRetries?: number;
  fetch?: typeof globalThis.fetch;
}

export interface Call {
  method: "GET" | "POST" | "DELETE";
  /** Begins with a slash; ids in it are encoded by the caller. */
  path: string;
  query?: Record<string, string | number | undefined>;
  /** Sent as JSON. */
  json?: unknown;
  /** Made anew for each try, since a stream is read once. */
  body?: () => { type: string; stream: AsyncIterable<Uint8Array> };
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

const firstDelayMs = 500;
const maxDelayMs = 8000;

export class Connection {
  readonly baseUrl: string;
  private readonly apiKey: string;
  private readonly maxRetries: number;
  private readonly fetch: typeof globalThis.fetch;

  constructor(options: ClientOptions) {
    this.baseUrl = options.baseUrl.replace(/\/+$/, "").replace(/\/v1$/, "");
    this.apiKey = options.apiKey;
    this.maxRetries = options.maxRetries ?? 2;
    this.fetch = options.fetch ?? globalThis.fetch;
  }

  /** The answer, parsed by the contract. Throws FettleError. */
  async json<S extends z.ZodType>(call: Call, schema: S): Promise<z.output<S>> {
    const response = await this.send(call);
    const parsed = schema.safeParse(await jsonOrNull(response));
    if (parsed.success) return parsed.data;
    const where = parsed.error.issues[0]?.path.join(".") || "the whole body";
    throw new FettleError(
      `The answer of ${call.method} ${call.path} does not fit the contract at ${where}: client and server differ in version. Update the older one.`,
      { status: response.status, code: "invalid_response", requestId: response.headers.get("x-request-id") },
    );
  }

  /** The raw answer, status 2xx for sure. Throws FettleError. */
  async send(call: Call): Promise<Response> {
    const idempotencyKey = call.method === "POST" ? crypto.randomUUID() : null;
    for (let retries = 0; ; retries += 1) {
      const outcome = await this.attempt(call, { idempotencyKey, retries });
      if (outcome instanceof Response && outcome.ok) return outcome;
      const error = outcome instanceof Response ? errorFrom(outcome, await errorBody(outcome)) : outcome;
      if (retries >= this.maxRetries || !isWorthRetrying(outcome) || call.signal?.aborted) throw error;
      await pause(delayOf(outcome, retries), call.signal);
    }
  }

  private async attempt(
    call: Call,
    { idempotencyKey, retries }: { idempotencyKey: string | null; retries: number },
  ): Promise<Response | FettleError> {
    const url = new URL(this.baseUrl + call.path);
    for (const [name, value] of Object.entries(call.query ?? {})) {
      if (value !== undefined) url.searchParams.set(name, String(value));
    }
    const headers = new Headers({
      authorization: `Bearer ${this.apiKey}`,
      accept: "application/json",
      ...call.headers,
    });
    if (idempotencyKey !== null) headers.set("idempotency-key", idempotencyKey);
    if (retries > 0) headers.set("x-stainless-retry-count", String(retries));
    const init: RequestInit & { duplex?: "half" } = { method: call.method, headers };
    if (call.signal) init.signal = call.signal;
    if (call.json !== undefined) {
      headers.set("content-type", "application/json");
      init.body = JSON.stringify(call.json);
    } else if (call.body) {
      const { type, stream } = call.body();
      headers.set("content-type", type);
      init.body = ReadableStream.from(stream) as unknown as NonNullable<RequestInit["body"]>;
      init.duplex = "half";
    }
    try {
      return await this.fetch(url, init);
    } catch (cause) {
      if (call.signal?.aborted) throw cause;
      return new FettleError(
        `No answer from ${this.baseUrl}: ${reasonOf(cause)}. Check that the server runs (\`fettle up\`) and the address is right.`,
        {
          status: 0,
          code: "unreachable",
          cause,
        },
      );
    }
  }
}

/** fetch hides the system's reason in `cause`. */
function reasonOf(error: unknown): string {
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
  const code = cause instanceof Error && "code" in cause ? String(cause.code) : "";
  if (code === "ECONNREFUSED") return "nothing listens there (connection refused)";
  return cause instanceof Error ? cause.message || code : String(cause);
}

async function jsonOrNull(response: Response): Promise<unknown> {
  try {
    return await response.json();
  } catch {
    return null;
  }
}

async function errorBody(response: Response) {
  const parsed = errorBodySchema.safeParse(await jsonOrNull(response));
  return parsed.success ? parsed.data : null;
}

function isWorthRetrying(outcome: Response | FettleError): boolean {
  if (outcome instanceof FettleError) return true;
  const told = outcome.headers.get("x-should-retry");
  return told === null ? outcome.status === 429 || outcome.status >= 500 : told === "true";
}

function delayOf(outcome: Response | FettleError, retries: number): number {
  const told = outcome instanceof Response ? Number(outcome.headers.get("retry-after") ?? Number.NaN) : Number.NaN;
  if (told >= 0) return Math.min(told, 60) * 1000;
  return Math.min(firstDelayMs * 2 ** retries, maxDelayMs) * (0.75 + Math.random() / 4);
}

function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(done, ms);
    const aborted = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    signal?.addEventListener("abort", aborted, { once: true });
    function done() {
      signal?.removeEventListener("abort", aborted);
      resolve();
    }
  });
}
