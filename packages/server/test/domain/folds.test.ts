import { describe, expect, it } from "vitest";
import { foldsResult, metricsOfFold, rareInFolds } from "../../src/domain/folds.js";
import { type Sweep, type Trial, plannedTrials } from "../../src/domain/sweep.js";
import { sampleRun } from "../store/samples.js";
import { type Options, SweepWorld } from "./sweep-world.js";

const none = { trials: null, minutes: null, money: null, pricePerHour: 0 };
const world = (change: Partial<Sweep> = {}, options: Partial<Options> = {}): SweepWorld =>
  new SweepWorld({
    loss: () => 1,
    sweep: { folds: 5, space: {}, search: "grid", repeats: 0, budget: none, ...change },
    ...options,
  });
const error = { code: "training_diverged", message: "The loss became NaN.", param: null } as const;

describe("a cross-validation", () => {
  it("is one run for each fold, all with the same values and seed", () => {
    const done = world().finish();
    expect(done.sweep.status).toBe("succeeded");
    expect(done.trials.map(({ plan: { number, values, seed, chosen } }) => [number, values, seed, chosen])).toEqual(
      [0, 1, 2, 3, 4].map((number) => [number, {}, 7, `fold ${number + 1} of 5 is held out`]),
    );
    expect(plannedTrials(done.sweep)).toBe(5);
  });

  it("begins with one fold, and with the others when its rows are tokenised, as many at once as there are places", () => {
    const blind = world({}, { places: 3, change: (run) => ({ ...run, totalSteps: null }) }).finish();
    const [first, second] = blind.trials;
    expect(second?.run?.startedAt).toBeGreaterThanOrEqual(first?.run?.finishedAt ?? Number.POSITIVE_INFINITY);
    const told = world({}, { places: 3 }).finish();
    expect(told.mostAtWork).toBe(3);
    expect(world({ parallel: 2 }, { places: 3 }).finish().mostAtWork).toBe(2);
  });

  it("goes on when a fold fails, and fails when the first cannot begin or fewer than two are left", () => {
    const failing = (which: string[], unresolved = false): SweepWorld =>
      world(
        {},
        {
          change: (run) =>
            which.includes(run.id)
              ? { ...run, status: "failed", error, ...(unresolved && { hyperparameters: null }) }
              : run,
        },
      ).finish();
    const four = failing(["run-2"]);
    expect(four.sweep.status).toBe("succeeded");
    expect(foldsResult(four.sweep, four.trials)?.message).toContain(
      "Fold 3 has no score: training_diverged: The loss became NaN. The folds share",
    );
    const broken = failing(["run-0"], true);
    expect([broken.sweep.status, broken.trials.length]).toEqual(["failed", 1]);
    expect(failing(["run-0", "run-1", "run-2", "run-3"]).sweep).toMatchObject({ status: "failed", error });
  });

  it("begins no fold that its time does not suffice for, and tells of how many it is the average", () => {
    // A fold takes 4 s.
    const cut = world({ budget: { ...none, minutes: 13 / 60 } }).finish();
    expect([cut.sweep.status, cut.trials.length, cut.now]).toEqual(["succeeded", 3, 12_000]);
    expect(foldsResult(cut.sweep, cut.trials)?.message).toMatch(/^accuracy is 0\.99 on average over 3 of 5 folds/);
    const short = world({ budget: { ...none, minutes: 5 / 60 } }).finish();
    expect(short.sweep).toMatchObject({ status: "failed", error: { param: "budget" } });
    expect(short.sweep.error?.message).toContain("1 of 5 folds came to a score, and an average needs two");
  });

  it("cancelled, ends its runs first and says so", () => {
    const one = world({}, { places: 2 });
    for (let round = 0; round < 6; round += 1) one.act();
    one.sweep = { ...one.sweep, status: "cancelling" };
    one.finish();
    expect(one.sweep.status).toBe("cancelled");
    expect(one.trials[0]?.plan.stopped).toEqual({ why: "cancelled", reason: "the cross-validation was cancelled" });
  });
});

const trial = (number: number, metrics: Record<string, number> | null): Trial => ({
  plan: { number, role: "search", values: {}, chosen: "", seed: 7, runId: `run-${number}`, stopped: null },
  run: sampleRun(metrics === null ? { status: "failed", error } : { status: "succeeded" }),
  evaluations:
    metrics === null
      ? []
      : [
          { step: 1, at: 1, loss: 0.5 + number, best: true, metrics },
          { step: 2, at: 2, loss: 9, best: false, metrics: { accuracy: 0 } },
        ],
});

describe("what its folds come to", () => {
  it("is each metric of the models that are kept, with mean and interval by Student's t", () => {
    const result = foldsResult({ folds: 3 }, [
      trial(0, { accuracy: 0.8 }),
      trial(1, { accuracy: 0.9 }),
      trial(2, { accuracy: 1 }),
    ]);
    expect(result?.metric).toBe("accuracy");
    const { mean, std, interval, folds } = result?.metrics["accuracy"] ?? { interval: null };
    expect([mean, std, folds]).toEqual([expect.closeTo(0.9, 9), expect.closeTo(0.1, 9), 3]);
    // t of 2 degrees of freedom is 4.303, over the root of 3.
    expect(interval).toEqual([expect.closeTo(0.9 - 0.24843, 4), expect.closeTo(0.9 + 0.24843, 4)]);
    expect(result?.metrics["valid_loss"]?.mean).toBeCloseTo(1.5, 9);
    expect(result?.message).toBe(
      "accuracy is 0.9 on average over 3 folds (95 % interval 0.652 to 1.15, standard deviation 0.1). The folds share training rows, so the interval is approximate.",
    );
  });

  it("is told by the held-out loss where the task has no metric of its own", () => {
    const result = foldsResult({ folds: 2 }, [trial(0, { perplexity: 2 }), trial(1, { perplexity: 3 })]);
    expect(result?.metric).toBe("valid_loss");
    expect(result?.message).toMatch(/^valid_loss is 1 on average over 2 folds/);
  });

  it("has no spread of one fold, and is nothing of none", () => {
    const one = foldsResult({ folds: 3 }, [trial(0, { accuracy: 0.8 }), trial(1, null)]);
    expect(one?.metrics["accuracy"]).toEqual({ folds: 1, mean: 0.8, std: null, interval: null });
    expect(one?.message).toBe("accuracy is 0.8 on the one fold that has ended so far.");
    expect(foldsResult({ folds: 3 }, [trial(0, null)])).toBeNull();
    expect(metricsOfFold({ ...trial(0, { accuracy: 1 }), run: sampleRun({ status: "running" }) })).toBeNull();
  });

  it("names classes with fewer rows than folds", () => {
    expect(rareInFolds({ ham: 9, spam: 5 }, 5)).toEqual([]);
    expect(rareInFolds(null, 5)).toEqual([]);
    expect(rareInFolds({ ham: 9, spam: 4 }, 5)).toEqual([
      '1 class has fewer rows than there are folds: "spam" (4). Some folds are judged without it. Add rows, or ask for fewer folds.',
    ]);
  });
});
