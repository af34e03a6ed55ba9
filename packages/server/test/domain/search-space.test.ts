import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { summarize } from "../../src/domain/confidence.js";
import { checkGrid, checkSpace, gridValues, keyOf, randomValues, sizeOf } from "../../src/domain/search-space.js";

const refusal = (space: Parameters<typeof checkSpace>[0], fixed: string[] = []): string => {
  const checked = checkSpace(space, fixed);
  return checked.ok ? "" : `${checked.refusal.param}: ${checked.refusal.message}`;
};

describe("a search space", () => {
  it("is refused where a run would refuse a value of it, with what is expected", () => {
    const range = { log: false };
    expect(refusal({})).toContain("name at least one");
    expect(refusal({ learning_rate: { min: 0.01, max: 2, ...range } })).toBe(
      "space.learning_rate: space.learning_rate reaches 2: expected a number above 0, at most 0.1.",
    );
    expect(refusal({ lora_r: { values: [8, 2.5] } })).toContain("space.lora_r.values has 2.5: expected a whole number");
    expect(refusal({ lr_scheduler_type: { values: ["linear", "polynomial"] } })).toContain('"polynomial"');
    expect(refusal({ warmup_ratio: { min: 0.3, max: 0.1, ...range } })).toContain("expected min below max");
    expect(refusal({ weight_decay: { min: 0, max: 0.1, log: true } })).toContain("expected min above 0");
    expect(refusal({ lora_r: { min: 4, max: 8, log: false, step: 0.5 } })).toContain("expected a whole number");
    expect(refusal({ lora_r: { min: 4, max: 8, log: true, step: 1 } })).toContain("exclude each other");
    expect(refusal({ lora_r: { values: [4, 4] } })).toContain("twice");
    // A list of so many values would fill the server's memory.
    expect(refusal({ learning_rate: { min: 1e-9, max: 0.1, log: false, step: 1e-10 } })).toContain(
      "makes more than 10000 values",
    );
    expect(refusal({ lora_r: { values: [4] } }, ["lora_r"])).toContain("both fixed in hyperparameters and searched");
    const rate = { values: [1, 2] };
    expect(refusal({ learning_rate_multiplier: rate }, ["learning_rate"])).toContain("set the same");
    expect(refusal({ dropout: { values: [null, 0.1] }, learning_rate_multiplier: rate })).toBe("");
  });

  it("is a grid when it has an end, and not too far off", () => {
    expect(checkGrid({ learning_rate: { min: 1e-5, max: 1e-3, log: true } })).toMatchObject({ ok: false });
    expect(checkGrid({ lora_r: { min: 1, max: 512, log: false } })).toMatchObject({ ok: true });
    const wide = checkGrid({
      lora_r: { min: 1, max: 512, log: false },
      num_train_epochs: { min: 1, max: 50, log: false },
    });
    expect(wide).toMatchObject({ ok: false, refusal: { message: expect.stringContaining("25600 combinations") } });
    const space = { lora_r: { values: [4, 8, 16] }, warmup_ratio: { min: 0, max: 0.1, log: false, step: 0.05 } };
    expect(sizeOf(space)).toBe(9);
    const all = Array.from({ length: 9 }, (_, index) => gridValues(space, { index, seed: 3 }) ?? {});
    expect(new Set(all.map(keyOf)).size).toBe(9);
    expect(gridValues(space, { index: 9, seed: 3 })).toBeNull();
  });

  it("gives values within its bounds, none twice, of every part of a range", () => {
    fc.assert(
      fc.property(fc.nat(), fc.integer({ min: 0, max: 999 }), (seed, number) => {
        const space = {
          learning_rate: { min: 1e-5, max: 1e-1, log: true },
          lora_r: { min: 4, max: 6, log: false },
          lora_alpha: { min: 1, max: 64, log: true },
        };
        const values = randomValues(space, { number, seed, tried: [] });
        expect(values?.learning_rate).toBeGreaterThanOrEqual(1e-5);
        expect(values?.learning_rate).toBeLessThanOrEqual(1e-1);
        expect([4, 5, 6]).toContain(values?.lora_r);
      }),
    );
    const rates = Array.from({ length: 400 }, (_, number) => {
      const drawn = randomValues(
        { learning_rate: { min: 1e-5, max: 1e-1, log: true } },
        { number, seed: 1, tried: [] },
      );
      return Math.floor(Math.log10(Number(drawn?.learning_rate)));
    });
    for (const power of [-5, -4, -3, -2]) expect(rates.filter((one) => one === power).length).toBeGreaterThan(70);
    const tried = [{ lora_r: 4 }, { lora_r: 5 }];
    const small = { lora_r: { min: 4, max: 6, log: false } };
    expect(randomValues(small, { number: 3, seed: 1, tried })).toEqual({ lora_r: 6 });
    expect(randomValues(small, { number: 4, seed: 1, tried: [...tried, { lora_r: 6 }] })).toBeNull();
  });
});

describe("a mean with its interval", () => {
  it("is Student's", () => {
    // By scipy.stats.t.interval(0.95, 4, loc=3, scale=sqrt(2.5 / 5)).
    const known = summarize([1, 2, 3, 4, 5]);
    expect(known?.mean).toBe(3);
    expect(known?.std).toBeCloseTo(1.5811, 4);
    expect(known?.interval[0]).toBeCloseTo(1.0368, 3);
    expect(known?.interval[1]).toBeCloseTo(4.9632, 3);
    expect(summarize([1])).toBeNull();
  });
});
