/** Seconds a run will take: what they rest on. The figures are those of docs/performance.md, of two cores of an AMD EPYC. */
import { describe, expect, it } from "vitest";
import { operationsOf, secondsRange } from "../../src/domain/estimate.js";
import type { Run } from "../../src/domain/job.js";
import { type PaceInput, paceOf, type Trained } from "../../src/domain/pace.js";
import { sampleRun } from "../store/samples.js";
import { world } from "./validate-world.js";

const minilm = { numParameters: 22_713_216, hiddenSize: 384, numLayers: 6, vocabSize: 30_522 };
const smollm = { numParameters: 134_515_008, hiddenSize: 576, numLayers: 30, vocabSize: 49_152 };
/** About 1 600 tokens a second, and 231. */
const spam = { tokens: 1600 * 100, epochs: 1, method: "full", family: "encoder" } as const;
const triage = { tokens: 231 * 230, epochs: 1, method: "lora", family: "decoder" } as const;
const product = 165e9;

const trained = (change: Partial<Trained> = {}): Trained => ({
  baseModel: "smol",
  method: "lora",
  operations: operationsOf(smollm, triage),
  seconds: 230,
  ...change,
});
const input = (change: Partial<PaceInput> = {}): PaceInput => ({
  baseModel: "smol",
  method: "lora",
  cores: 2,
  trained: [],
  product: null,
  ...change,
});

describe("the pace of a machine", () => {
  it("is that of finished runs of the same model and method, when there are some", () => {
    const others = [trained({ baseModel: "mini", seconds: 1000 }), trained({ method: "full", seconds: 1000 })];
    const pace = paceOf(input({ trained: [trained(), trained({ seconds: 200 }), ...others], product }));
    expect(pace.basis).toBe("2 finished runs of smol with lora on this machine");
    const [least, most] = secondsRange(operationsOf(smollm, triage), pace);
    expect([least, most]).toEqual([141, 390]);
  });

  it("is that of other finished runs, with more room, when there are only those", () => {
    const pace = paceOf(input({ baseModel: "mini", method: "full", trained: [trained()], product }));
    expect(pace.basis).toBe("1 finished run of other models or methods on this machine");
    expect(pace.fast / pace.slow).toBeCloseTo(6.25);
  });

  it("is a share of the measured product when no run has ended; the demo's two runs are within it", () => {
    const pace = paceOf(input({ product }));
    expect(pace.basis).toBe("a matrix product measured on this machine, 165 GFLOP/s; no run has ended here yet");
    for (const [size, work, seconds] of [
      [minilm, spam, 100],
      [smollm, triage, 230],
    ] as const) {
      const rate = operationsOf(size, work) / seconds;
      expect(rate).toBeGreaterThan(pace.slow);
      expect(rate).toBeLessThan(pace.fast);
    }
    expect(secondsRange(operationsOf(smollm, triage), pace)).toEqual([201, 623]);
  });

  it("is assumed when nothing is known, wider, and says so", () => {
    const pace = paceOf(input());
    expect(pace.basis).toBe("2 cores of usual speed; nothing has been measured on this machine yet");
    expect(pace.fast / pace.slow).toBeGreaterThan(0.9 / 0.3);
    expect(paceOf(input({ cores: 1 })).basis).toContain("1 core of usual speed");
    expect(paceOf(input({ cores: 4 })).slow).toBe(2 * pace.slow);
  });

  it("learns nothing from a run of moments, or from one without operations", () => {
    const empty = [trained({ seconds: 4.9 }), trained({ operations: 0 })];
    expect(paceOf(input({ trained: empty, product })).basis).toContain("a matrix product");
  });

  it("makes ranges that grow with the work", () => {
    const pace = paceOf(input({ product }));
    const full = secondsRange(operationsOf(minilm, spam), pace);
    expect(full[1]).toBeGreaterThan(full[0]);
    expect(secondsRange(operationsOf(minilm, { ...spam, method: "head" }), pace)[1]).toBeLessThan(full[1]);
    expect(secondsRange(operationsOf(minilm, { ...spam, epochs: 3 }), pace)[0]).toBeGreaterThan(full[0]);
  });
});

describe("a validated run", () => {
  const ended = (change: Partial<Run> = {}): Run =>
    sampleRun({
      status: "succeeded",
      baseModel: "smol",
      method: "lora",
      trainedTokens: triage.tokens,
      trainSeconds: 230,
      estimate: { seconds: [1, 2], memoryBytes: 1, tokens: 1, machine: "two cores" },
      ...change,
    });

  it("tells its estimate with what it rests on", async () => {
    const { validate, run, events } = await world({ succeeded: [ended()] });
    await validate();
    expect(run().estimate).toMatchObject({
      basis: "1 finished run of smol with lora on this machine",
      machine: "two cores",
    });
    expect(events.map(({ message }) => message)).toContainEqual(
      expect.stringMatching(
        /^Estimate: about \d+ tokens, .* of memory\. The time rests on 1 finished run of smol with lora on this machine\.$/,
      ),
    );
  });

  it.each<[string, Run[]]>([
    ["another machine", [ended({ estimate: { seconds: [1, 2], memoryBytes: 1, tokens: 1, machine: "ten cores" } })]],
    ["an earlier version", [ended({ estimate: { seconds: [1, 2], memoryBytes: 1, tokens: 1 } })]],
    ["a model that is gone", [ended({ baseModel: "gone" })]],
    ["before its figures were kept", [sampleRun({ ...ended(), trainedTokens: null })]],
  ])("learns nothing from a run of %s", async (_, succeeded) => {
    const { validate, run } = await world({ succeeded, product });
    await validate();
    expect(run().estimate?.basis).toContain("a matrix product measured on this machine, 165 GFLOP/s");
  });
});
