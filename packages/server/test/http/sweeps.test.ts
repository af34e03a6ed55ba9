import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { Tuner } from "../../src/app/ports.js";
import { startSweeper, type Sweeper } from "../../src/app/sweeper.js";
import type { Values } from "../../src/domain/search-space.js";
import type { Question } from "../../src/domain/sweep-question.js";
import { eventually } from "../store/samples.js";
import { createWorld, type Json, type World } from "./world.js";
import { endTrial } from "./trials.js";

let world: World;
const asked: Question[] = [];
/** Names what is set, or nothing. */
let suggestion: Values | null = null;
const tuner: Tuner = {
  suggest: async (question) => {
    asked.push(question);
    if (suggestion === null) throw new Error("no answer");
    return suggestion;
  },
  importance: async () => ({ learning_rate: 0.75, lora_r: 0.25 }),
};
let sweeper: Sweeper;
let file: string;
beforeAll(async () => {
  world = await createWorld();
  sweeper = startSweeper({ ...world.deps, tuner }, { tickMs: 50 });
});
beforeEach(async () => {
  file = await world.upload();
});
afterAll(async () => {
  await sweeper.close();
  await world.close();
});

const post = (body: object) =>
  world.send("POST", "/api/sweeps", { body: { model: "minilm", training_file: file, ...body } });
const get = async (path: string): Promise<Json> => (await world.send("GET", path)).json;
const trialsOf = async (id: string): Promise<Json[]> => (await get(`/api/sweeps/${id}/trials`)).data;
const trial = (id: string, number: number): Promise<Json> =>
  eventually(`trial ${number}`, async () => (await trialsOf(id)).find((one) => one.number === number));

const succeed = (runId: string, loss: number): Promise<void> => endTrial(world, runId, loss);

describe("POST /api/sweeps", () => {
  it("makes trials that are ordinary runs, one after the other, and ends with a verdict", async () => {
    const space = { learning_rate: { values: [0.01, 0.02] } };
    const made = await post({ space, search: "grid", repeats: 2, metadata: { team: "a" }, seed: 5 });
    expect(made.json).toMatchObject({
      object: "sweep",
      status: "running",
      phase: "search",
      metric: { name: "valid_loss", direction: "minimize" },
      trials: { planned: 3, started: 0 },
      best: null,
      verdict: null,
    });
    const { id } = made.json;
    await succeed((await trial(id, 0)).run_id, 2);
    const first = await trial(id, 1);
    const run = await eventually("the run", () => world.deps.store.runs.get("default", first.run_id));
    expect(run).toMatchObject({ seed: 5, split: { seed: 5 }, metadata: { team: "a", sweep: id, trial: "1" } });
    expect(run.request.hyperparameters).toEqual({ learning_rate: first.values.learning_rate });
    for (const number of [1, 2]) {
      const { run_id, values } = await trial(id, number);
      await succeed(run_id, values.learning_rate * 10);
    }
    const soFar = await get(`/api/sweeps/${id}`);
    expect(soFar).toMatchObject({
      automatic: { trial: 0, score: 2 },
      best: { score: 0.1, values: { learning_rate: 0.01 }, hyperparameters: { learning_rate: 0.01 } },
    });
    expect(soFar.minutes_used).toBeGreaterThan(0.9);
    expect(soFar.money_used).toBeCloseTo((soFar.minutes_used / 60) * 3, 9);
    for (const number of [3, 4, 5, 6]) {
      const one = await trial(id, number);
      expect([one.role, one.seed]).toEqual([number % 2 ? "repeat_automatic" : "repeat_best", number < 5 ? 6 : 7]);
      await succeed(one.run_id, one.role === "repeat_best" ? 0.1 + number / 100 : 2);
    }
    const done = await eventually("the end", async () => {
      const now = await get(`/api/sweeps/${id}`);
      return now.status === "succeeded" && now;
    });
    expect(done).toMatchObject({ phase: "ended", seconds_left: 0, trials: { started: 7, succeeded: 7 } });
    expect(done.verdict).toMatchObject({ answer: "better", pairs: 2, noise: 0 });
    expect(done.verdict.message).toMatch(/^Trial \d is better than the automatic values by 1\.85 in valid_loss/);
    expect(done.importance).toEqual({
      shares: null,
      message: "3 trials are too few to tell: expected 5 or more.",
    });
    expect(done.parallel_coordinates.axes).toEqual([
      { name: "learning_rate", log: false, range: null, values: [0.01, 0.02, 0.001] },
    ]);
    expect(done.parallel_coordinates.lines).toHaveLength(3);
    expect(done.parallel_coordinates.lines[0]).toEqual({ trial: 0, values: [0.001], score: 2 });
    expect((await get("/api/sweeps?limit=1")).data[0].id).toBe(id);
    expect((await world.send("POST", `/api/sweeps/${id}/cancel`)).json.error.code).toBe("conflict");
  });

  it("asks the estimator once six trials have scored, says why each value was tried, and what mattered", async () => {
    const space = { learning_rate: { min: 1e-4, max: 0.1, log: true }, lora_r: { values: [4, 8] } };
    const { id } = (await post({ space, search: "bayesian", repeats: 0, budget: { trials: 9 }, seed: 11 })).json;
    for (let number = 0; number < 9; number += 1) {
      if (number === 6) suggestion = { learning_rate: 0.05, lora_r: 8 };
      if (number === 8) suggestion = null;
      await succeed((await trial(id, number)).run_id, 10 - number);
    }
    const done = await eventually("the end", async () => {
      const now = await get(`/api/sweeps/${id}`);
      return now.status === "succeeded" && now;
    });
    const trials = await trialsOf(id);
    expect(trials[5].chosen).toMatch(/^at random, by the seed: \d trials have scored/);
    // While a trial is at work the next is planned: the seventh question was asked with six that had scored.
    const chosen = trials.map((one) => one.chosen);
    const first = chosen.findIndex((one) => one.startsWith("where the estimator expects most"));
    expect(first).toBeGreaterThanOrEqual(6);
    expect(trials[first].values).toEqual({ learning_rate: 0.05, lora_r: 8 });
    expect(chosen.slice(first + 1).join()).toMatch(/named values that were tried|gave no answer/);
    expect(asked[0]).toMatchObject({
      direction: "minimize",
      dimensions: [
        { name: "learning_rate", min: 1e-4, max: 0.1, log: true, whole: false },
        { name: "lora_r", values: [4, 8] },
      ],
    });
    expect(asked[0]?.trials[0]).toEqual({
      values: { learning_rate: 0.001, lora_r: 4 },
      state: "succeeded",
      score: 10,
      points: [[1, 10]],
    });
    expect(new Set(asked.map(({ seed }) => seed)).size).toBe(asked.length);
    expect(done.importance).toEqual({
      shares: { learning_rate: 0.75, lora_r: 0.25 },
      message: "Of what was searched, learning_rate mattered most, by 9 trials (PED-ANOVA).",
    });
  });

  it("is refused where no trial could begin, naming the field", async () => {
    const code = async (body: object): Promise<string> => {
      const { status, json } = await post(body);
      expect(status, JSON.stringify(json)).toBeGreaterThanOrEqual(400);
      return `${json.error.code} ${json.error.param}`;
    };
    expect(await code({ model: "nobody" })).toBe("model_not_found model");
    expect(await code({ training_file: "file-gone" })).toBe("not_found training_file");
    expect(await code({ space: { lerning_rate: { values: [1] } } })).toBe("unknown_field space.lerning_rate");
    expect(await code({ space: { learning_rate: { values: [1] } } })).toBe("value_out_of_range space.learning_rate");
    expect(await code({ space: {} })).toBe("value_out_of_range space");
    expect(await code({ search: "grid" })).toBe("invalid_request space.learning_rate_multiplier");
    expect(await code({ space: { max_length: { values: [64, 128] } } })).toBe("invalid_request metric.name");
    expect(await code({ budget: { trials: 0 } })).toBe("value_out_of_range budget.trials");
    expect(await code({ budget: { minutes: -1 } })).toBe("value_out_of_range budget.minutes");
  });

  it("takes a budget in money only where the hour has a price", async () => {
    const priced = await post({ budget: { money: 2 } });
    expect(priced.json).toMatchObject({ budget: { money: 2 }, trials: { planned: null } });
    await world.send("POST", `/api/sweeps/${priced.json.id}/cancel`);
    world.deps.settings.pricePerHour = 0;
    const unpriced = await post({ budget: { money: 2 } });
    world.deps.settings.pricePerHour = 3;
    expect(unpriced.json.error).toMatchObject({ code: "value_out_of_range", param: "budget.money" });
    expect(unpriced.json.error.message).toContain("runs.price_per_hour in fettle.yaml");
  });

  it("knows which way a metric is better", async () => {
    for (const [name, direction] of [
      ["accuracy", "maximize"],
      ["rmse", "minimize"],
      ["valid_loss", "minimize"],
    ]) {
      const { json } = await post({ metric: { name } });
      expect(json.metric).toEqual({ name, direction });
      await world.send("POST", `/api/sweeps/${json.id}/cancel`);
    }
  });
});

it("ends with its runs when it is cancelled, and is nobody else's to see", async () => {
  const { id } = (await post({})).json;
  const { run_id } = await trial(id, 0);
  await eventually("the run", () => world.deps.store.runs.get("default", run_id));
  const key = await world.newKey("other");
  for (const path of [`/api/sweeps/${id}`, `/api/sweeps/${id}/trials`])
    expect((await world.send("GET", path, { key })).status).toBe(404);
  expect((await world.send("POST", `/api/sweeps/${id}/cancel`, { key })).status).toBe(404);
  expect((await world.send("POST", `/api/sweeps/${id}/cancel`)).json.status).toBe("cancelling");
  await eventually("the end", async () => (await get(`/api/sweeps/${id}`)).status === "cancelled");
  expect((await trialsOf(id)).map(({ status, reason }) => [status, reason])).toEqual([
    ["cancelled", "cancelled: the sweep was cancelled"],
  ]);
  expect((await get(`/api/runs/${run_id}`)).status).toBe("cancelled");
  const events = (await get(`/api/runs/${run_id}/events`)).data;
  expect(events.at(-1).message).toBe("cancelled: the sweep was cancelled");
});

it("ends a run that was made while another server ended the sweep", async () => {
  const { create } = world.deps.store.runs;
  const { id } = (await post({})).json;
  let ended = "";
  world.deps.store.runs.create = async (run, events) => {
    const made = await create(run, events);
    if (ended !== "" || run.metadata?.["sweep"] !== id) return made;
    ended = run.id;
    const stopped = { why: "cancelled", reason: "the sweep was cancelled" } as const;
    await world.deps.store.sweeps.update(id, (now) => ({
      ...now,
      status: "cancelled",
      finishedAt: Date.now(),
      plans: now.plans.map((plan) => ({ ...plan, stopped })),
    }));
    return made;
  };
  const run = await eventually("its end", async () => {
    const now = ended === "" ? null : await world.deps.store.runs.get("default", ended);
    return now?.status === "cancelled" && now;
  });
  world.deps.store.runs.create = create;
  expect((await get(`/api/runs/${run.id}/events`)).data.at(-1).message).toBe("cancelled: the sweep was cancelled");
});

it("fails with the reason when its file goes away between trials", async () => {
  const { id } = (await post({})).json;
  await succeed((await trial(id, 0)).run_id, 2);
  const second = await trial(id, 1);
  await eventually("the run", () => world.deps.store.runs.get("default", second.run_id));
  await world.deps.store.files.delete("default", file, Date.now());
  await world.send("POST", `/api/runs/${second.run_id}/cancel`);
  await world.deps.store.files.delete("default", file, Date.now());
  const done = await eventually("the end", async () => {
    const now = await get(`/api/sweeps/${id}`);
    return now.status === "succeeded" && now;
  });
  const late = (await trialsOf(id)).at(-1);
  expect(late).toMatchObject({ status: "failed", reason: expect.stringContaining("refused: not_found") });
  expect(done.verdict.answer).toBe("not_better");
});
