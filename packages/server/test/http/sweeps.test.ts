import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { startSweeper, type Sweeper } from "../../src/app/sweeper.js";
import { eventually } from "../store/samples.js";
import { createWorld, type Json, type World } from "./world.js";
import { endTrial } from "./trials.js";

let world: World;
let sweeper: Sweeper;
let file: string;
beforeAll(async () => {
  world = await createWorld();
  sweeper = startSweeper(world.deps, { tickMs: 50 });
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
    expect((await get("/api/sweeps?limit=1")).data[0].id).toBe(id);
    expect((await world.send("POST", `/api/sweeps/${id}/cancel`)).json.error.code).toBe("conflict");
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
