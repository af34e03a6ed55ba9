/** What every implementation of the inference port must do. The real pool and the scripted one run it alike. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { GenerateChunk, GenerateRequest, Inference, InferenceTarget, TokenLogprob } from "../../src/app/ports.js";
import { AppError } from "../../src/domain/error.js";

export interface PortUnderTest {
  inference: Inference;
  /** Generates; its context is 512 tokens. */
  decoder: InferenceTarget;
  /** Classifies with the labels ham and spam. */
  classifier: InferenceTarget;
  /** Gives a text a number. */
  scorer: InferenceTarget;
  encoder: InferenceTarget;
  /** Requests a target may have open. */
  maxQueue: number;
}

export const greedy: GenerateRequest = {
  prompt: { text: "the quick brown fox" },
  maxTokens: 12,
  temperature: 0,
  topP: 1,
  stop: [],
  seed: null,
  frequencyPenalty: 0,
  presencePenalty: 0,
  logitBias: {},
  logprobs: null,
  jsonMode: false,
  echo: false,
};

export const never = (): AbortSignal => new AbortController().signal;

export interface Collected {
  text: string;
  logprobs: TokenLogprob[];
  types: string[];
  end: Extract<GenerateChunk, { type: "end" }>;
}

export async function collect(chunks: AsyncIterable<GenerateChunk>): Promise<Collected> {
  const all: GenerateChunk[] = [];
  for await (const chunk of chunks) all.push(chunk);
  const deltas = all.filter((chunk) => chunk.type === "delta");
  const end = all.at(-1);
  if (end?.type !== "end") throw new Error(`the last chunk is ${end?.type}, not an end`);
  return {
    text: deltas.map(({ text }) => text).join(""),
    logprobs: deltas.flatMap(({ logprobs }) => logprobs),
    types: all.map(({ type }) => type),
    end,
  };
}

/** The AppError that `promise` ends with. */
export async function refusal(promise: Promise<unknown>): Promise<AppError> {
  const error = await promise.then(
    () => new Error("nothing was refused"),
    (reason: unknown) => reason,
  );
  if (!(error instanceof AppError)) throw error;
  return error;
}

export function inferencePortSuite(make: () => Promise<PortUnderTest>): void {
  let port: PortUnderTest;
  const generate = (change: Partial<GenerateRequest> = {}, signal = never()) =>
    port.inference.generate(port.decoder, { ...greedy, ...change }, signal);

  beforeAll(async () => {
    port = await make();
    // Loading a model takes seconds; no test below should wait for it.
    await Promise.all([collect(generate()), port.inference.embed(port.encoder, ["x"], never())]);
  }, 120_000);
  afterAll(() => port.inference.close());

  describe("generate", () => {
    it("says start, then deltas, then end", async () => {
      const { types, text, end } = await collect(generate());
      expect(types[0]).toBe("start");
      expect(new Set(types.slice(1, -1))).toEqual(new Set(["delta"]));
      expect(text).not.toBe("");
      expect(end.promptTokens).toBeGreaterThan(0);
      expect(end.completionTokens).toBeLessThanOrEqual(12);
    });

    it("gives the same greedy answer to the same request, also beside others", async () => {
      const alone = await collect(generate());
      const others = ["my parcel", "hello"].map((text) => collect(generate({ prompt: { text } })));
      expect((await collect(generate())).text).toBe(alone.text);
      await Promise.all(others);
    });

    it("ends before a stop string and shows no part of it", async () => {
      const whole = await collect(generate());
      const stop = whole.text.slice(3, 6);
      const cut = await collect(generate({ stop: [stop] }));
      expect(cut.text).toBe(whole.text.slice(0, whole.text.indexOf(stop)));
      expect(cut.end.finishReason).toBe("stop");
    });

    it("says length when the limit ends it", async () => {
      const { end } = await collect(generate({ maxTokens: 2 }));
      expect(end).toMatchObject({ finishReason: "length", completionTokens: 2 });
    });

    it("reports each token with its bytes and the alternatives asked for", async () => {
      const { text, logprobs } = await collect(generate({ logprobs: 3 }));
      expect(Buffer.from(logprobs.flatMap(({ bytes }) => bytes)).toString()).toBe(text);
      for (const { logprob, top } of logprobs) {
        expect(logprob).toBeLessThanOrEqual(0);
        expect(top).toHaveLength(3);
      }
      expect((await collect(generate())).logprobs).toEqual([]);
    });

    it("answers an object in JSON mode", async () => {
      const { text } = await collect(generate({ jsonMode: true, maxTokens: 40 }));
      expect(JSON.parse(text)).toBeTypeOf("object");
    });

    it("echoes the prompt first", async () => {
      const { text } = await collect(generate({ echo: true }));
      expect(text.startsWith("the quick brown fox")).toBe(true);
    });

    it("refuses what does not fit the context", async () => {
      const error = await refusal(collect(generate({ maxTokens: 512 })));
      expect(error.code).toBe("context_length_exceeded");
      expect(error.message).toMatch(/512 tokens.*(Shorten|lower)/);
    });

    it("stops when its reader leaves, and takes the next request", async () => {
      for await (const chunk of generate({ maxTokens: 300 })) {
        if (chunk.type === "delta") break;
      }
      expect(port.inference.loaded().map(({ busy }) => busy)).not.toContain(1);
      await collect(generate());
    });

    it("throws the signal's reason when it is aborted", async () => {
      const controller = new AbortController();
      const reason = new Error("the client has gone");
      const reading = (async () => {
        for await (const chunk of generate(
          { maxTokens: 300, prompt: { text: "again and again" } },
          controller.signal,
        )) {
          if (chunk.type === "start") controller.abort(reason);
        }
      })();
      await expect(reading).rejects.toBe(reason);
      await expect(collect(generate({}, AbortSignal.abort(reason)))).rejects.toBe(reason);
    });

    it("refuses the request over the queue's bound and says when to come again", async () => {
      const open = Array.from({ length: port.maxQueue }, () => generate({ maxTokens: 300 }));
      for (const iterator of open)
        expect((await iterator[Symbol.asyncIterator]().next()).value).toMatchObject({ type: "start" });
      const error = await refusal(collect(generate()));
      expect(error.code).toBe("rate_limit_exceeded");
      expect(error.details?.["retryAfterSeconds"]).toBeGreaterThanOrEqual(1);
      for (const iterator of open) await iterator[Symbol.asyncIterator]().return?.();
      await collect(generate());
    });
  });

  describe("classify", () => {
    it("gives every label of every text, most probable first", async () => {
      const { scores, numTokens } = await port.inference.classify(
        port.classifier,
        ["hello", "my parcel has not come"],
        never(),
      );
      expect(scores).toHaveLength(2);
      expect(numTokens).toBeGreaterThan(2);
      for (const list of scores) {
        expect(list.map(({ label }) => label).sort()).toEqual(["ham", "spam"]);
        expect(list[0]!.probability).toBeGreaterThanOrEqual(list[1]!.probability);
        expect(list[0]!.probability + list[1]!.probability).toBeCloseTo(1, 5);
      }
    });

    it("refuses a model without a head", async () => {
      const error = await refusal(
        port.inference.classify({ ...port.classifier, adapterPath: null }, ["hello"], never()),
      );
      expect(error.code).toBe("unsupported_parameter");
      expect(error.message).toContain("no classification head");
    });
  });

  describe("predict", () => {
    it("gives an input a number, the same for the same input, and another with a second text", async () => {
      const inputs = [{ text: "hello" }, { text: "hello", second: "my parcel" }, { text: "hello" }];
      const { predictions, numTokens } = await port.inference.predict(port.scorer, inputs, never());
      const [alone, both, again] = predictions.map((one) => ("score" in one ? one.score : Number.NaN));
      expect(alone).toBeCloseTo(again!, 3);
      expect(Math.abs(alone! - both!)).toBeGreaterThan(1e-4);
      expect(numTokens).toBeGreaterThan(3);
    });
  });

  describe("embed", () => {
    it("gives a unit vector an input, the same for the same input", async () => {
      const { vectors } = await port.inference.embed(port.encoder, ["hello", "goodbye", "hello"], never());
      for (const vector of vectors) expect(Math.hypot(...vector)).toBeCloseTo(1, 4);
      expect(cosine(vectors[0]!, vectors[2]!)).toBeCloseTo(1, 4);
      expect(cosine(vectors[0]!, vectors[1]!)).toBeLessThan(0.9999);
    });

    it("takes token ids, and no input at all", async () => {
      const { vectors, numTokens } = await port.inference.embed(port.encoder, [[5, 6, 7]], never());
      expect(vectors).toHaveLength(1);
      expect(numTokens).toBe(3);
      expect(await port.inference.embed(port.encoder, [], never())).toEqual({ vectors: [], numTokens: 0 });
    });

    it("refuses a decoder", async () => {
      const error = await refusal(port.inference.embed({ ...port.decoder, task: "embed" }, ["hello"], never()));
      expect(error.code).toBe("unsupported_parameter");
    });
  });

  it("names what is loaded, with its adapters", async () => {
    await port.inference.classify(port.classifier, ["hello"], never());
    const encoder = port.inference.loaded().find(({ basePath }) => basePath === port.classifier.basePath);
    expect(encoder?.busy).toBe(0);
    await expect
      .poll(() => port.inference.loaded().find(({ basePath }) => basePath === port.classifier.basePath)?.adapters)
      .toContain(port.classifier.adapterPath);
    await expect.poll(() => Math.min(...port.inference.loaded().map(({ rssBytes }) => rssBytes))).toBeGreaterThan(0);
  });

  it("answers nothing after it is closed", async () => {
    await port.inference.close();
    expect((await refusal(collect(generate()))).code).toBe("inference_failed");
    expect(port.inference.loaded()).toEqual([]);
  });
}

function cosine(a: Float32Array, b: Float32Array): number {
  return a.reduce((sum, value, index) => sum + value * (b[index] ?? 0), 0);
}
