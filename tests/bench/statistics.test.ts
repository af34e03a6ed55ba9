/** A benchmark that cannot notice that two runs did different work proves nothing. */
import { describe, expect, it } from "vitest";
import {
  heldOutDifference,
  lossDifference,
  median,
  type RunRecord,
  tokensPerSecond,
} from "../../bench/trainer/statistics.js";

const run = (
  steps: [numTokens: number, loss: number, time: number][],
  heldOutLoss: number | null = null,
): RunRecord => ({
  steps: steps.map(([numTokens, loss, time], index) => ({ step: index + 1, numTokens, loss, time })),
  heldOutLoss,
  peakRssBytes: 1,
  firstStepSeconds: 1,
  startUpSeconds: 1,
  wallSeconds: 1,
});

describe("median", () => {
  it("is the middle, or the mean of the two middles", () => {
    expect(median([5, 1, 3])).toBe(3);
    expect(median([4, 1, 3, 2])).toBe(2.5);
  });

  it("of nothing is an error", () => expect(() => median([])).toThrow("median of nothing"));
});

describe("tokens per second", () => {
  it("leaves the first step out, with its start-up", () => {
    expect(
      tokensPerSecond(
        run([
          [100, 2, 50],
          [300, 2, 52],
          [500, 2, 54],
        ]),
      ),
    ).toBe(100);
  });

  it("of one step is an error", () => expect(() => tokensPerSecond(run([[100, 2, 50]]))).toThrow("needs two steps"));
});

describe("difference of losses", () => {
  it("on the same batches is that of the worst step", () => {
    const [ours, peer] = [
      run(
        [
          [10, 2, 0],
          [20, 1.1, 1],
        ],
        3,
      ),
      run(
        [
          [10, 2, 0],
          [20, 1, 1],
        ],
        3,
      ),
    ];
    expect(lossDifference(ours, peer)).toBeCloseTo(0.1);
  });

  it("counts the held-out loss too", () => {
    expect(lossDifference(run([[10, 2, 0]], 3.3), run([[10, 2, 0]], 3))).toBeCloseTo(0.1);
  });

  it("of several epochs compares the first, since the others mix the rows in another way", () => {
    const later = (loss: number): RunRecord =>
      run(
        [
          [10, 2, 0],
          [20, loss, 1],
        ],
        loss,
      );
    expect(lossDifference(later(1), later(9), 2)).toBe(0);
  });

  it("refuses to compare steps that read other tokens", () => {
    expect(() => lossDifference(run([[10, 2, 0]]), run([[12, 2, 0]]))).toThrow("not the same batches");
  });

  it("of held-out rows alone is unknown when there are none", () => {
    expect(heldOutDifference(run([[10, 2, 0]]), run([[12, 2, 0]]))).toBeNull();
    expect(heldOutDifference(run([[10, 9, 0]], 3.3), run([[12, 2, 0]], 3))).toBeCloseTo(0.1);
  });
});
