/**
 * The inference port without models: answers follow from the request alone, at once. For tests of the server
 * around it and for measuring that server.
 *
 *   generate   a decoder answers "echo: " and the last text of the prompt, word by word; JSON mode wraps it in an object
 *   classify   probabilities follow from the text and the labels given for the adapter or base
 *   predict    a number that follows from the input, whatever the task
 *   embed      a unit vector of `dimensions` numbers that follows from the input
 *
 * It keeps to the port's rules: stop strings, token limit, context limit, cancelling, and 429 over `maxQueue`.
 */
import { createHash } from "node:crypto";
import type { Prediction } from "@fettle/contract";
import type {
  AskedText,
  GenerateChunk,
  GenerateRequest,
  Inference,
  InferenceTarget,
  LabelScore,
  TokenLogprob,
} from "../app/ports.js";
import { AppError } from "../domain/error.js";

export interface ScriptedOptions {
  /** Labels a classifier knows, by its adapter path, or base path when it has no adapter. Others refuse to classify. */
  labels?: Readonly<Record<string, readonly string[]>>;
  /** The text of an answer; the default repeats the prompt. */
  answer?: (target: InferenceTarget, request: GenerateRequest) => string;
  contextLength?: number;
  dimensions?: number;
  maxQueue?: number;
}

const megabyte = 1024 * 1024;

export class ScriptedInference implements Inference {
  private readonly options: Required<ScriptedOptions>;
  private readonly used = new Map<string, { adapters: Set<string>; busy: number }>();
  private isClosed = false;

  constructor(options: ScriptedOptions = {}) {
    this.options = { labels: {}, answer: repeatPrompt, contextLength: 512, dimensions: 8, maxQueue: 64, ...options };
  }

  async *generate(
    target: InferenceTarget,
    request: GenerateRequest,
    signal: AbortSignal,
  ): AsyncGenerator<GenerateChunk, void, undefined> {
    const done = this.enter(target, signal);
    try {
      const prompt = tokensOf(promptText(request));
      const promptTokens = Math.max(prompt.length, 1);
      const limit = request.maxTokens ?? Math.max(this.options.contextLength - promptTokens, 1);
      this.checkContext(promptTokens + limit);
      yield { type: "start", promptTokens };
      if (request.echo) yield { type: "delta", text: prompt.join(""), logprobs: logprobsOf(prompt, request) };
      const whole = request.jsonMode
        ? JSON.stringify({ answer: this.options.answer(target, request) })
        : this.options.answer(target, request);
      const { text, isStopped } = upToStop(whole, request.stop);
      const tokens = tokensOf(text);
      for (const token of tokens.slice(0, limit)) {
        await nextTurn();
        signal.throwIfAborted();
        if (this.isClosed) throw closedError();
        yield { type: "delta", text: token, logprobs: logprobsOf([token], request) };
      }
      const isCut = tokens.length > limit || (tokens.length === limit && !isStopped);
      yield {
        type: "end",
        finishReason: isCut ? "length" : "stop",
        promptTokens,
        completionTokens: Math.min(tokens.length, limit),
      };
    } finally {
      done();
    }
  }

  async classify(
    target: InferenceTarget,
    given: (string | AskedText)[],
    signal: AbortSignal,
  ): Promise<{ scores: LabelScore[][]; numTokens: number }> {
    const done = this.enter(target, signal);
    try {
      await nextTurn();
      const labels = this.options.labels[target.adapterPath ?? target.basePath];
      if (labels === undefined)
        throw new AppError(
          "unsupported_parameter",
          `${target.basePath} has no classification head. Tune it with task \`classification\` first.`,
        );
      const texts = given.map((one) => (typeof one === "string" ? one : asText(one)));
      return { scores: texts.map((text) => scoresOf(text, labels)), numTokens: countTokens(texts) };
    } finally {
      done();
    }
  }

  async predict(
    target: InferenceTarget,
    inputs: AskedText[],
    signal: AbortSignal,
  ): Promise<{ predictions: Prediction[]; numTokens: number }> {
    const done = this.enter(target, signal);
    try {
      await nextTurn();
      const texts = inputs.map(asText);
      return {
        predictions: texts.map((text) => ({ score: digest(text).readInt32LE(0) / 2 ** 31 })),
        numTokens: countTokens(texts),
      };
    } finally {
      done();
    }
  }

  async embed(
    target: InferenceTarget,
    inputs: (string | number[])[],
    signal: AbortSignal,
  ): Promise<{ vectors: Float32Array[]; numTokens: number }> {
    const done = this.enter(target, signal);
    try {
      await nextTurn();
      if (target.family !== "encoder")
        throw new AppError(
          "unsupported_parameter",
          `${target.basePath} is a ${target.family}; embeddings need an encoder model.`,
        );
      for (const input of inputs) this.checkContext(countTokens([input]));
      return {
        vectors: inputs.map((input) =>
          unitVector(JSON.stringify([target.adapterPath, input]), this.options.dimensions),
        ),
        numTokens: countTokens(inputs),
      };
    } finally {
      done();
    }
  }

  loaded(): { basePath: string; adapters: string[]; rssBytes: number; busy: number }[] {
    return [...this.used].map(([basePath, { adapters, busy }]) => ({
      basePath,
      adapters: [...adapters],
      rssBytes: megabyte,
      busy,
    }));
  }

  async close(): Promise<void> {
    this.isClosed = true;
    this.used.clear();
  }

  /** Admits a request; the returned function takes it out again. */
  private enter(target: InferenceTarget, signal: AbortSignal): () => void {
    signal.throwIfAborted();
    if (this.isClosed) throw closedError();
    const place = this.used.get(target.basePath) ?? { adapters: new Set<string>(), busy: 0 };
    if (place.busy >= this.options.maxQueue) {
      throw new AppError(
        "rate_limit_exceeded",
        `${place.busy} requests already run or wait for this model; at most ${this.options.maxQueue} may. Try again in 1 s.`,
        { details: { retryAfterSeconds: 1 } },
      );
    }
    if (target.adapterPath !== null) place.adapters.add(target.adapterPath);
    this.used.set(target.basePath, place);
    place.busy += 1;
    return () => {
      place.busy -= 1;
    };
  }

  private checkContext(numTokens: number): void {
    if (numTokens <= this.options.contextLength) return;
    throw new AppError(
      "context_length_exceeded",
      `Prompt and answer are up to ${numTokens} tokens; the context of this model is ${this.options.contextLength} tokens. Shorten the messages or lower max_completion_tokens.`,
    );
  }
}

const closedError = (): AppError =>
  new AppError("inference_failed", "The server is shutting down. Send the request again when it is back.");
const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
/** A word with the space before it is a token. */
const tokensOf = (text: string): string[] => text.match(/\s*\S+|\s+$/g) ?? [];
const countTokens = (inputs: (string | number[])[]): number =>
  inputs.reduce((sum, input) => sum + (typeof input === "string" ? tokensOf(input).length : input.length), 0);

function repeatPrompt(_target: InferenceTarget, request: GenerateRequest): string {
  return `echo: ${promptText(request)}`;
}

function promptText({ prompt }: GenerateRequest): string {
  if ("text" in prompt) return prompt.text;
  if ("tokens" in prompt) return prompt.tokens.join(" ");
  const last = prompt.messages.at(-1);
  const content = typeof last === "object" && last !== null && "content" in last ? last.content : "";
  return typeof content === "string" ? content : JSON.stringify(content);
}

function upToStop(text: string, stop: string[]): { text: string; isStopped: boolean } {
  const found = stop.map((word) => text.indexOf(word)).filter((at) => at >= 0);
  return found.length === 0 ? { text, isStopped: false } : { text: text.slice(0, Math.min(...found)), isStopped: true };
}

function logprobsOf(tokens: string[], request: GenerateRequest): TokenLogprob[] {
  if (request.logprobs === null) return [];
  const numTop = request.logprobs;
  const entry = (token: string, logprob: number): Omit<TokenLogprob, "top"> => ({
    token,
    bytes: [...Buffer.from(token)],
    logprob,
  });
  return tokens.map((token) => ({
    ...entry(token, Math.log(0.5)),
    top: Array.from({ length: numTop }, (_, rank) =>
      entry(rank === 0 ? token : `${token}${rank}`, Math.log(0.5 ** (rank + 1))),
    ),
  }));
}

const asText = ({ text, second }: AskedText): string => (second === undefined ? text : `${text}\n${second}`);

function digest(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}

function scoresOf(text: string, labels: readonly string[]): LabelScore[] {
  const weights = labels.map((label) => 1 + digest(`${label}\n${text}`).readUInt32LE(0));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return labels
    .map((label, index) => ({ label, probability: (weights[index] ?? 0) / total }))
    .sort((a, b) => b.probability - a.probability);
}

function unitVector(text: string, dimensions: number): Float32Array {
  const vector = Float32Array.from(
    { length: dimensions },
    (_, index) => digest(`${index}\n${text}`).readInt32LE(0) / 2 ** 31,
  );
  const length = Math.hypot(...vector) || 1;
  return vector.map((value) => value / length);
}
