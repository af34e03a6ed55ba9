import { describe, expect, it } from "vitest";
import { leftMs, usedMs } from "../../src/domain/sweep-budget.js";
import { bestOf, isSearched, nextActions, plannedTrials, scoreOf } from "../../src/domain/sweep.js";
import { verdictOf } from "../../src/domain/sweep-verdict.js";
import { sampleRun } from "../store/samples.js";
import { SweepWorld } from "./sweep-world.js";

/** Least at a learning rate of 0.01; the automatic one is 0.001. */
const valley = (values: { learning_rate?: unknown }, seed: number): number =>
  Math.abs(Math.log10(Number(values.learning_rate ?? 0.001) / 0.01)) + (seed % 5) * 0.01;
const roles = (world: SweepWorld): string => world.trials.map(({ plan }) => plan.role[0]).join("");

describe("a sweep", () => {
  it("tries the automatic values, then others, then both with fresh seeds, and says what was better", () => {
    const world = new SweepWorld({ loss: valley }).finish();
    expect(world.sweep.status).toBe("succeeded");
    expect(world.trials.map(({ plan }) => plan.role)).toEqual([
      "automatic",
      ...Array<string>(5).fill("search"),
      ...["repeat_automatic", "repeat_best", "repeat_automatic", "repeat_best"],
    ]);
    expect(world.trials.map(({ plan }) => plan.seed)).toEqual([7, 7, 7, 7, 7, 7, 8, 8, 9, 9]);
    const best = bestOf(world.sweep, world.trials);
    expect(best?.score).toBe(Math.min(...world.trials.filter(isSearched).map((one) => scoreOf(world.sweep, one) ?? 9)));
    expect(world.trials[7]?.plan.values).toEqual(best?.trial.plan.values);
    const verdict = verdictOf(world.sweep, world.trials);
    expect(verdict).toMatchObject({ answer: "better", pairs: 2 });
    expect(verdict.mean_gain).toBeCloseTo(valley({}, 8) - valley(best?.trial.plan.values ?? {}, 8), 9);
  });

  it("is the same again with the same seed, another with another, and says the same however often it is asked", () => {
    const tried = (seed: number): unknown =>
      new SweepWorld({ loss: valley, sweep: { seed } }).finish().trials.map(({ plan }) => plan.values);
    expect(tried(7)).toEqual(tried(7));
    expect(tried(8)).not.toEqual(tried(7));
    const world = new SweepWorld({ loss: valley });
    for (let round = 0; round < 5; round += 1) {
      expect(nextActions(world.sweep, world.trials, world.now)).toEqual(
        nextActions(world.sweep, world.trials, world.now),
      );
      world.act();
    }
  });

  it("goes through a whole grid once, and no further", () => {
    const space = { learning_rate: { values: [0.001, 0.01, 0.1] }, lora_r: { min: 4, max: 8, log: false, step: 4 } };
    const budget = { trials: null, minutes: null, money: null, pricePerHour: 0 };
    const world = new SweepWorld({ loss: valley, sweep: { search: "grid", space, budget, repeats: 0 } }).finish();
    const tried = world.trials.slice(1).map(({ plan }) => `${plan.values.learning_rate}/${plan.values.lora_r}`);
    expect(tried.sort()).toEqual(["0.001/4", "0.001/8", "0.01/4", "0.01/8", "0.1/4", "0.1/8"]);
    expect(verdictOf(world.sweep, world.trials)).toMatchObject({ answer: "unknown", pairs: 0 });
  });

  it("ends a random search when a small space has no more", () => {
    const space = { lr_scheduler_type: { values: ["linear", "cosine"] } };
    const world = new SweepWorld({ loss: () => 1, sweep: { space } }).finish();
    expect(roles(world)).toBe("ass");
    const budget = { trials: null, minutes: null, money: null, pricePerHour: 0 };
    expect(plannedTrials({ ...world.sweep, budget })).toBe(3);
    expect(verdictOf(world.sweep, world.trials)).toMatchObject({
      answer: "not_better",
      message: "No configuration scored better than the automatic values.",
    });
  });

  it("has as many trials at work as there are places, one more waiting, and never more than asked", () => {
    const wide = new SweepWorld({ loss: valley, places: 3, sweep: { repeats: 0 } }).finish();
    expect(wide.mostAtWork).toBe(3);
    const narrow = new SweepWorld({ loss: valley, places: 3, sweep: { repeats: 0, parallel: 2 } }).finish();
    expect(narrow.mostAtWork).toBe(2);
  });

  it("keeps back time for the verdict, and stops what is at work when the time is spent", () => {
    // A trial takes 4 s of 60: a third is kept for the four repeats.
    const budget = { trials: null, minutes: 1, money: null, pricePerHour: 0 };
    const world = new SweepWorld({ loss: valley, sweep: { budget } }).finish();
    expect(roles(world)).toBe(`a${"s".repeat(10)}rrrr`);
    expect(world.sweep.status).toBe("succeeded");
    const short = { ...budget, minutes: 11 / 60 };
    const cut = new SweepWorld({ loss: valley, sweep: { budget: short } }).finish();
    expect(cut.now).toBe(11_000);
    expect(cut.trials.at(-1)?.plan.stopped).toMatchObject({ why: "budget" });
    expect(cut.trials.at(-1)?.run?.status).toBe("cancelled");
    expect(cut.sweep.status).toBe("succeeded");
  });

  it("counts money as time at a price, and time once however many work", () => {
    const budget = { trials: null, minutes: null, money: 0.05, pricePerHour: 3 };
    expect(roles(new SweepWorld({ loss: valley, sweep: { budget } }).finish())).toBe(`a${"s".repeat(10)}rrrr`);
    const span = (startedAt: number, finishedAt: number | null) => ({ run: sampleRun({ startedAt, finishedAt }) });
    expect(usedMs([span(100, 200), span(150, 250), span(400, null), { run: null }], 450)).toBe(200);
  });

  it("tells how long it will take once one trial has ended", () => {
    const world = new SweepWorld({ loss: valley });
    const left = () => leftMs({ sweep: world.sweep, trials: world.trials, unplanned: 5, repeats: 4, now: world.now });
    expect(left()).toBeNull();
    world.finish();
    expect(left()).toBe(9 * 4_000);
  });

  it("cancelled, ends its runs first", () => {
    const world = new SweepWorld({ loss: valley, places: 2 });
    for (let round = 0; round < 6; round += 1) world.act();
    world.sweep = { ...world.sweep, status: "cancelling" };
    world.finish();
    expect(world.sweep).toMatchObject({ status: "cancelled", error: null });
    expect(world.trials.every(({ run }) => run?.status === "cancelled")).toBe(true);
  });

  it("goes on when a trial fails, and fails when the first cannot begin or no trial ends", () => {
    const error = { code: "training_diverged", message: "The loss became NaN.", param: null } as const;
    const failing = (which: (run: { id: string }) => boolean, hyperparameters: null | "known") =>
      new SweepWorld({
        loss: valley,
        change: (run) =>
          which(run)
            ? { ...run, status: "failed", error, ...(hyperparameters === null && { hyperparameters: null }) }
            : run,
      }).finish();
    expect(failing((run) => run.id === "run-2", "known").sweep.status).toBe("succeeded");
    const broken = failing((run) => run.id === "run-0", null);
    expect(broken.sweep).toMatchObject({ status: "failed", error });
    expect(broken.trials).toHaveLength(1);
    expect(failing(() => true, "known").sweep).toMatchObject({ status: "failed", error });
  });

  it("plans no further trials when ten in a row could not begin, however much time is left", () => {
    const budget = { trials: null, minutes: 60, money: null, pricePerHour: 0 };
    const error = { code: "file_not_usable", message: "The file was deleted.", param: "training_file" } as const;
    const world = new SweepWorld({
      loss: valley,
      sweep: { budget },
      change: (run) => (run.id === "run-0" ? run : { ...run, status: "failed", error, hyperparameters: null }),
    }).finish();
    expect([world.sweep.status, world.trials.length]).toEqual(["succeeded", 11]);
  });

  it("fails at once when the runs do not measure what is asked", () => {
    const metric = { name: "f1_macro", direction: "maximize" } as const;
    const world = new SweepWorld({ loss: valley, sweep: { metric } }).finish();
    expect(world.sweep).toMatchObject({
      status: "failed",
      error: { code: "value_out_of_range", param: "metric.name" },
    });
    expect(world.sweep.error?.message).toContain("expected one of valid_loss, accuracy.");
    expect(world.now).toBeLessThan(4_000);
  });

  it("judges a trial by the model its run keeps, not by the best number it ever had", () => {
    const metric = { name: "accuracy", direction: "maximize" } as const;
    const losses = [3, 1, 2, 4];
    const world = new SweepWorld({ loss: (_, __, epoch) => losses[epoch - 1] ?? 9, sweep: { metric } });
    while (world.trials[0]?.run?.status !== "succeeded")
      if (!world.act()) (world as unknown as { pass(): void }).pass();
    expect(scoreOf(world.sweep, world.trials[0] as never)).toBeCloseTo(0.99, 9);
  });
});

describe("pruning", () => {
  const steep = (values: { learning_rate?: unknown }, seed: number, epoch: number): number =>
    valley(values, seed) + 1 / epoch;
  it("by the median ends those behind half of the others, never the automatic values, and saves time", () => {
    const many = { trials: 16, minutes: null, money: null, pricePerHour: 0 };
    const whole = new SweepWorld({ loss: steep, sweep: { budget: many } }).finish();
    const world = new SweepWorld({ loss: steep, sweep: { budget: many, pruning: "median" } }).finish();
    const pruned = world.trials.filter(({ plan }) => plan.stopped?.why === "pruned");
    expect(pruned.length).toBeGreaterThan(2);
    expect(pruned.every(({ plan, run }) => plan.role === "search" && run?.status === "cancelled")).toBe(true);
    expect(pruned[0]?.plan.stopped?.reason).toMatch(
      /^after 1 epochs it is at .*, and half of \d+ other trials were at/,
    );
    expect(world.now).toBeLessThan(whole.now);
    expect(bestOf(world.sweep, world.trials)?.trial.plan).toEqual(bestOf(whole.sweep, whole.trials)?.trial.plan);
  });

  it("by hyperband lets a third go on from each rung", () => {
    const many = { trials: 17, minutes: null, money: null, pricePerHour: 0 };
    const world = new SweepWorld({ loss: steep, epochs: 9, sweep: { budget: many, pruning: "hyperband" } }).finish();
    const pruned = world.trials.filter(({ plan }) => plan.stopped?.why === "pruned");
    const epochs = pruned.map(({ evaluations }) => evaluations.length);
    expect(new Set(epochs)).toEqual(new Set([1, 3]));
    // The last three of 17 meet no rung.
    expect(pruned.every(({ plan }) => plan.number < 14)).toBe(true);
    expect(pruned[0]?.plan.stopped?.reason).toContain("the best 1 go on");
  });
});
