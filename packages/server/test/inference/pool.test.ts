/** The pool with real processes over tiny models. Starting a process takes seconds: tests share them where they can. */
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { Clock, GenerateChunk, InferenceTarget } from "../../src/app/ports.js";
import { InferencePool, type PoolOptions } from "../../src/inference/pool.js";
import { collect, greedy, inferencePortSuite, never, refusal } from "./port-suite.js";

const root = resolve(import.meta.dirname, "../../../..");
const python = join(root, ".venv/bin/python");
const silent = { info: () => {}, warn: () => {}, error: () => {} };
const folder = mkdtempSync(join(tmpdir(), "fettle-inference-"));
const target = (name: string, as: Pick<InferenceTarget, "family" | "task">, adapter?: string): InferenceTarget => ({
  basePath: join(folder, name),
  adapterPath: adapter === undefined ? null : join(folder, adapter),
  ...as,
});
const decoder = target("llama", { family: "decoder", task: "chat" });
const encoder = target("bert", { family: "encoder", task: "embed" });
const classifier = target("bert", { family: "encoder", task: "classification" }, "bert-adapter-0");
const scorer = target("bert", { family: "encoder", task: "regression" }, "bert-scorer");
/** Text that no answer reaches the end of: the end token is banned. */
const endless = { ...greedy, maxTokens: 400, logitBias: { "3": -100 } };

/** Time that goes on when told to. */
class HandClock implements Clock {
  private time = 0;
  private readonly timers = new Set<{ ms: number; next: number; fn: () => void }>();
  now = (): number => this.time;
  sleep = async (): Promise<void> => {};
  every(ms: number, fn: () => void): () => void {
    const timer = { ms, next: this.time + ms, fn };
    this.timers.add(timer);
    return () => this.timers.delete(timer);
  }
  advance(ms: number): void {
    this.time += ms;
    for (const timer of this.timers) {
      if (timer.next > this.time) continue;
      timer.next = this.time + timer.ms;
      timer.fn();
    }
  }
}

const pools: InferencePool[] = [];
function makePool(change: Partial<PoolOptions> = {}): { pool: InferencePool; clock: HandClock } {
  const clock = new HandClock();
  const pool = new InferencePool({
    python,
    trainerSource: join(root, "trainer/src"),
    environment: { PATH: process.env["PATH"], HOME: process.env["HOME"] },
    numThreads: 1,
    maxRows: 8,
    maxAdapters: 4,
    cacheMebibytes: 64,
    log: silent,
    clock,
    memoryBytes: 8e9,
    maxQueue: 64,
    idleMs: 60_000,
    ...change,
  });
  pools.push(pool);
  return { pool, clock };
}

/** Starts a generation and reads until its first text. */
async function begun(pool: InferencePool): Promise<AsyncGenerator<GenerateChunk, void, undefined>> {
  const chunks = pool.generate(decoder, endless, never());
  for (;;) {
    const { value, done } = await chunks.next();
    if (done) throw new Error("the generation ended before its first text");
    if (value.type === "delta") return chunks;
  }
}

async function rest(chunks: AsyncIterable<GenerateChunk>): Promise<void> {
  for await (const _ of chunks);
}

beforeAll(() => {
  execFileSync(python, [join(root, "trainer/tests/serve_folders.py"), folder, "llama", "bert"], {
    stdio: "pipe",
    env: { ...process.env, OMP_NUM_THREADS: "1" },
  });
}, 120_000);
afterAll(() => rmSync(folder, { recursive: true, force: true }));
afterEach(async () => {
  await Promise.all(pools.splice(0).map((pool) => pool.close()));
});

describe("the pool", () => {
  describe("as the port", () => {
    let ours: InferencePool;
    inferencePortSuite(async () => {
      ours = makePool({ maxQueue: 3 }).pool;
      pools.splice(0);
      return { inference: ours, decoder, encoder, classifier, scorer, maxQueue: 3 };
    });
  });

  it("refuses to predict with a model that classifies, and says why", { timeout: 120_000 }, async () => {
    const { pool } = makePool();
    const error = await refusal(pool.predict(classifier, [{ text: "hello" }], never()));
    expect(error.code).toBe("unsupported_parameter");
    expect(error.message).toContain("its task is classification");
  });

  it("outlives a killed process: its answers fail loudly, the next request starts another", {
    timeout: 120_000,
  }, async () => {
    const { pool } = makePool();
    const adapters = [null, "llama-adapter-0", "llama-adapter-1", "llama-adapter-2"];
    const requests = Array.from({ length: 8 }, (_, n) => ({
      own: target("llama", { family: "decoder", task: "chat" }, adapters[n % 4] ?? undefined),
      request: { ...greedy, prompt: { text: `hello ${n}` }, maxTokens: 6 + 3 * n },
    }));
    const together = await Promise.all(
      requests.map(({ own, request }) => collect(pool.generate(own, request, never()))),
    );

    const chunks = await begun(pool);
    const waiting = collect(pool.generate(decoder, endless, never()));
    process.kill(pool.pids()[0]!, "SIGKILL");
    for (const failed of [refusal(rest(chunks)), refusal(waiting)]) {
      expect(await failed).toMatchObject({
        code: "inference_failed",
        message: expect.stringContaining("by signal SIGKILL while answering"),
      });
    }
    expect(pool.loaded()).toEqual([]);

    // The new process, one request at a time, says what the old one said to eight at once.
    for (const [n, { own, request }] of requests.entries()) {
      expect((await collect(pool.generate(own, request, never()))).text).toBe(together[n]!.text);
    }
    expect(new Set(together.map(({ text }) => text)).size).toBe(8);

    // Closing the pool ends what runs, loudly too.
    const last = await begun(pool);
    const [pid] = pool.pids();
    const failed = refusal(rest(last));
    await pool.close();
    expect((await failed).code).toBe("inference_failed");
    expect(isAlive(pid!)).toBe(false);
  });

  it("closes idle processes after their time, or when another model needs their memory", {
    timeout: 120_000,
  }, async () => {
    const { pool, clock } = makePool({ memoryBytes: 1, idleMs: 10_000 });
    const chunks = await begun(pool);
    const [first] = pool.pids();
    const busy = await refusal(pool.embed(encoder, ["x"], never()));
    expect(busy).toMatchObject({ code: "rate_limit_exceeded", message: expect.stringContaining("leave no memory") });
    expect(busy.details?.["retryAfterSeconds"]).toBeGreaterThanOrEqual(1);
    clock.advance(60_000);
    expect(pool.loaded()).toHaveLength(1);
    await chunks.return();

    await pool.embed(encoder, ["x"], never());
    expect(pool.loaded().map(({ basePath }) => basePath)).toEqual([encoder.basePath]);
    await expect.poll(() => isAlive(first!)).toBe(false);

    const [second] = pool.pids();
    clock.advance(9000);
    expect(pool.loaded()).toHaveLength(1);
    clock.advance(5000);
    expect(pool.loaded()).toEqual([]);
    await expect.poll(() => isAlive(second!)).toBe(false);
  });

  it("says why a model could not be loaded", { timeout: 60_000 }, async () => {
    mkdirSync(join(folder, "empty"));
    const { pool } = makePool();
    const error = await refusal(
      collect(pool.generate(target("empty", { family: "decoder", task: "chat" }), greedy, never())),
    );
    expect(error.code).toBe("inference_failed");
    expect(error.message).toContain("config.json is missing");
  });

  it("says that there is no Python", async () => {
    const { pool } = makePool({ python: join(folder, "no-python") });
    const error = await refusal(collect(pool.generate(decoder, greedy, never())));
    expect(error.code).toBe("python_missing");
    expect(error.message).toContain(join(folder, "no-python"));
  });
});

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
