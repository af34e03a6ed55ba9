/**
 * The pool of model processes: one per base model, started when first asked for.
 *
 * A request finds its process, or starts one after making room: least recently used idle processes are closed
 * until the new model fits the memory budget. A process with open requests is never closed for another; when
 * only busy ones are left the request is refused with `rate_limit_exceeded`. A model larger than the whole
 * budget is served when nothing else is loaded. Idle processes are closed after `idleMs`.
 */
import type { Prediction } from "@fettle/contract";
import type {
  AskedText,
  Clock,
  GenerateChunk,
  GenerateRequest,
  Inference,
  InferenceTarget,
  LabelScore,
} from "../app/ports.js";
import { AppError } from "../domain/error.js";
import { expectedBytes } from "./model-size.js";
import { ModelProcess, type ProcessOptions } from "./process.js";
import { decodeVector, generateLine, type WireAnswer, type WireRequest } from "./wire.js";

export interface PoolOptions extends ProcessOptions {
  clock: Clock;
  /** Resident memory of all processes together. */
  memoryBytes: number;
  /** Open requests of one process, running and waiting, before 429. */
  maxQueue: number;
  idleMs: number;
}

interface Place {
  process: ModelProcess;
  estimateBytes: number;
  usedAt: number;
  /** Smoothed duration of its requests. */
  requestMs: number;
}

const firstGuessMs = 2000;
const smoothing = 0.2;
const maxRetryAfterSeconds = 60;

export class InferencePool implements Inference {
  private readonly places = new Map<string, Place>();
  private readonly ending = new Set<Promise<void>>();
  private readonly stopSweeping: () => void;
  private isClosed = false;

  constructor(private readonly options: PoolOptions) {
    this.stopSweeping = options.clock.every(Math.min(options.idleMs / 2, 30_000), () => this.sweep());
  }

  async *generate(
    target: InferenceTarget,
    request: GenerateRequest,
    signal: AbortSignal,
  ): AsyncGenerator<GenerateChunk, void, undefined> {
    for await (const answer of this.send(target, generateLine(request, target.adapterPath), signal)) {
      if (answer.type === "start") yield { type: "start", promptTokens: answer.prompt_tokens };
      else if (answer.type === "delta") yield { type: "delta", text: answer.text, logprobs: answer.logprobs };
      else if (answer.type === "end")
        yield {
          type: "end",
          finishReason: answer.finish_reason,
          promptTokens: answer.prompt_tokens,
          completionTokens: answer.completion_tokens,
        };
    }
  }

  async classify(
    target: InferenceTarget,
    texts: (string | AskedText)[],
    signal: AbortSignal,
  ): Promise<{ scores: LabelScore[][]; numTokens: number }> {
    if (texts.length === 0) return { scores: [], numTokens: 0 };
    for await (const answer of this.send(
      target,
      { op: "classify", adapter: target.adapterPath, inputs: texts },
      signal,
    )) {
      if (answer.type === "scores") return { scores: answer.scores, numTokens: answer.num_tokens };
    }
    throw new AppError("inference_failed", "The model process gave no scores. Send the request again.");
  }

  async predict(
    target: InferenceTarget,
    inputs: AskedText[],
    signal: AbortSignal,
  ): Promise<{ predictions: Prediction[]; numTokens: number }> {
    if (inputs.length === 0) return { predictions: [], numTokens: 0 };
    for await (const answer of this.send(target, { op: "predict", adapter: target.adapterPath, inputs }, signal)) {
      if (answer.type === "predictions") return { predictions: answer.predictions, numTokens: answer.num_tokens };
    }
    throw new AppError("inference_failed", "The model process predicted nothing. Send the request again.");
  }

  async embed(
    target: InferenceTarget,
    inputs: (string | number[])[],
    signal: AbortSignal,
  ): Promise<{ vectors: Float32Array[]; numTokens: number }> {
    if (inputs.length === 0) return { vectors: [], numTokens: 0 };
    for await (const answer of this.send(target, { op: "embed", adapter: target.adapterPath, inputs }, signal)) {
      if (answer.type === "vectors") return { vectors: answer.vectors.map(decodeVector), numTokens: answer.num_tokens };
    }
    throw new AppError("inference_failed", "The model process gave no vectors. Send the request again.");
  }

  loaded(): { basePath: string; adapters: string[]; rssBytes: number; busy: number }[] {
    return this.alive().map(({ process }) => ({
      basePath: process.target.basePath,
      adapters: process.adapters,
      rssBytes: process.rssBytes,
      busy: process.numOpen,
    }));
  }

  /** Process ids, for diagnosis. */
  pids(): number[] {
    return this.alive().flatMap(({ process }) => process.pid ?? []);
  }

  async close(): Promise<void> {
    this.isClosed = true;
    this.stopSweeping();
    for (const key of [...this.places.keys()]) this.unload(key);
    await Promise.all(this.ending);
  }

  private async *send(
    target: InferenceTarget,
    request: WireRequest,
    signal: AbortSignal,
  ): AsyncGenerator<WireAnswer, void, undefined> {
    signal.throwIfAborted();
    const place = this.acquire(target);
    const begunAt = this.options.clock.now();
    try {
      yield* place.process.send(request, signal);
    } finally {
      place.usedAt = this.options.clock.now();
      place.requestMs += smoothing * (place.usedAt - begunAt - place.requestMs);
    }
  }

  /** The process of this target, with room for one more request. */
  private acquire(target: InferenceTarget): Place {
    if (this.isClosed)
      throw new AppError("inference_failed", "The server is shutting down. Send the request again when it is back.");
    const key = `${target.family} ${target.basePath}`;
    const known = this.places.get(key);
    if (known !== undefined && !known.process.ended) {
      if (known.process.numOpen >= this.options.maxQueue) throw this.full(known);
      known.usedAt = this.options.clock.now();
      return known;
    }
    this.places.delete(key);
    const estimateBytes = expectedBytes(target.basePath);
    this.makeRoom(estimateBytes);
    const place = {
      process: new ModelProcess(target, this.options),
      estimateBytes,
      usedAt: this.options.clock.now(),
      requestMs: firstGuessMs,
    };
    this.places.set(key, place);
    return place;
  }

  private makeRoom(bytes: number): void {
    for (;;) {
      const alive = this.alive();
      const used = alive.reduce((sum, place) => sum + Math.max(place.process.rssBytes, place.estimateBytes), 0);
      if (alive.length === 0 || used + bytes <= this.options.memoryBytes) return;
      const [oldest] = [...this.places]
        .filter(([, place]) => place.process.numOpen === 0)
        .sort(([, a], [, b]) => a.usedAt - b.usedAt);
      if (oldest === undefined) throw this.noRoom(alive);
      this.unload(oldest[0]);
    }
  }

  private sweep(): void {
    const idleSince = this.options.clock.now() - this.options.idleMs;
    for (const [key, place] of [...this.places]) {
      if (place.process.ended) this.places.delete(key);
      else if (place.process.numOpen === 0 && place.usedAt <= idleSince) this.unload(key);
    }
  }

  private unload(key: string): void {
    const place = this.places.get(key);
    if (place === undefined) return;
    this.places.delete(key);
    const end = place.process.close().finally(() => this.ending.delete(end));
    this.ending.add(end);
  }

  private alive(): Place[] {
    return [...this.places.values()].filter((place) => !place.process.ended);
  }

  private full(place: Place): AppError {
    const rounds = place.process.numOpen / this.options.maxRows;
    const retryAfterSeconds = retryAfter(rounds * place.requestMs);
    return new AppError(
      "rate_limit_exceeded",
      `${place.process.numOpen} requests already run or wait for this model; at most ${this.options.maxQueue} may. Try again in ${retryAfterSeconds} s, or raise inference.max_queue.`,
      { details: { retryAfterSeconds } },
    );
  }

  private noRoom(busy: Place[]): AppError {
    const retryAfterSeconds = retryAfter(Math.min(...busy.map((place) => place.requestMs)));
    return new AppError(
      "rate_limit_exceeded",
      `${busy.length} other models are answering and leave no memory for this one. Try again in ${retryAfterSeconds} s, or raise inference.memory_gb.`,
      { details: { retryAfterSeconds } },
    );
  }
}

function retryAfter(ms: number): number {
  return Math.max(1, Math.min(maxRetryAfterSeconds, Math.ceil(ms / 1000)));
}
