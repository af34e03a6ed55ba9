import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { noTuner } from "../../../../tests/recovery/platform.js";
import { startSweeper, type Sweeper } from "../../src/app/sweeper.js";
import type { DataReport } from "../../src/app/ports.js";
import { eventually } from "../store/samples.js";
import { endTrial } from "./trials.js";
import { createWorld, type Json, type World } from "./world.js";

let world: World;
let sweeper: Sweeper;
let file: string;
beforeAll(async () => {
  world = await createWorld();
  sweeper = startSweeper({ ...world.deps, tuner: noTuner }, { tickMs: 50 });
});
beforeEach(async () => {
  file = await world.upload();
});
afterAll(async () => {
  await sweeper.close();
  await world.close();
});

const path = "/api/cross-validations";
const post = (body: object) => world.send("POST", path, { body: { model: "minilm", training_file: file, ...body } });
const get = async (of: string): Promise<Json> => (await world.send("GET", of)).json;
const fold = (id: string, number: number): Promise<Json> =>
  eventually(`fold ${number}`, async () => (await get(`${path}/${id}`)).runs[number - 1]);
const report = (change: Partial<DataReport>): DataReport => ({
  format: "jsonl",
  kind: "classification",
  numRows: 12,
  numUsable: 12,
  numFaults: 0,
  faults: [],
  notices: [],
  labels: { ham: 10, spam: 2 },
  rowsSha256: "0".repeat(64),
  ...change,
});
const read = (change: Partial<DataReport> = {}): Promise<unknown> =>
  world.deps.store.files.setProcessed("default", file, {
    status: "processed",
    statusDetails: null,
    report: report(change),
  });

describe("POST /api/cross-validations", () => {
  it("makes one ordinary run a fold, and ends with mean and interval of every metric", async () => {
    await read();
    const made = await post({ folds: 3, seed: 5, metadata: { team: "a" }, hyperparameters: { num_train_epochs: 2 } });
    expect(made.json).toMatchObject({
      object: "cross_validation",
      status: "running",
      folds: 3,
      seed: 5,
      hyperparameters: { num_train_epochs: 2 },
      warnings: [expect.stringContaining('fewer rows than there are folds: "spam" (2).')],
      runs: [],
      result: null,
    });
    const { id } = made.json;
    for (const number of [1, 2, 3]) {
      const { run_id } = await fold(id, number);
      const run = await eventually("the run", () => world.deps.store.runs.get("default", run_id));
      expect(run).toMatchObject({
        seed: 5,
        split: { seed: 5, fold: { number: number - 1, of: 3 } },
        metadata: { team: "a", cross_validation: id, fold: String(number) },
        request: { hyperparameters: { num_train_epochs: 2 } },
      });
      await endTrial(world, run_id, number);
    }
    const done = await eventually("the end", async () => {
      const now = await get(`${path}/${id}`);
      return now.status === "succeeded" && now;
    });
    expect(done).toMatchObject({ seconds_left: 0, error: null, result: { metric: "accuracy" } });
    expect(done.runs.map((one: Json) => [one.fold, one.status, one.metrics])).toEqual(
      [1, 2, 3].map((number) => [number, "succeeded", { valid_loss: number, accuracy: 0.5 }]),
    );
    expect(done.result.metrics.valid_loss).toMatchObject({ folds: 3, mean: 2, std: 1 });
    expect(done.result.metrics.valid_loss.interval[0]).toBeCloseTo(2 - 4.303 / Math.sqrt(3), 9);
    expect(done.result.message).toMatch(/^accuracy is 0\.5 on average over 3 folds/);
    expect(done.minutes_used).toBeGreaterThan(0.9);
    expect(done.money_used).toBeCloseTo((done.minutes_used / 60) * 3, 9);
    expect((await world.send("POST", `${path}/${id}/cancel`)).json.error.code).toBe("conflict");
  });

  it("is refused where no fold could begin, naming the field", async () => {
    await read({ numUsable: 12 });
    const code = async (body: object): Promise<string> => {
      const { status, json } = await post(body);
      expect(status, JSON.stringify(json)).toBeGreaterThanOrEqual(400);
      return `${json.error.code} ${json.error.param}`;
    };
    expect(await code({ folds: 13 })).toBe("too_few_rows folds");
    expect(await code({ folds: 1 })).toBe("value_out_of_range folds");
    expect(await code({ folds: 21 })).toBe("value_out_of_range folds");
    expect(await code({ model: "nobody" })).toBe("model_not_found model");
    expect(await code({ training_file: "file-gone" })).toBe("not_found training_file");
    expect(await code({ validation_file: file })).toBe("unknown_field validation_file");
    expect(await code({ budget: { trials: 3 } })).toBe("unknown_field budget.trials");
    expect(await code({ search: "grid" })).toBe("unknown_field search");
  });
});

it("is no sweep, nor a sweep a cross-validation, and neither is anybody else's to see", async () => {
  const { id } = (await post({ folds: 2 })).json;
  const sweep = (await world.send("POST", "/api/sweeps", { body: { model: "minilm", training_file: file } })).json;
  expect((await get(path)).data.map((one: Json) => one.id)).toContain(id);
  expect((await get(path)).data.map((one: Json) => one.id)).not.toContain(sweep.id);
  expect((await get("/api/sweeps")).data.map((one: Json) => one.id)).toEqual([sweep.id]);
  expect((await get(`/api/sweeps/${id}`)).error).toMatchObject({ code: "not_found", param: "sweep_id" });
  expect((await get(`${path}/${sweep.id}`)).error).toMatchObject({ code: "not_found", param: "cross_validation_id" });
  const key = await world.newKey("other");
  expect((await world.send("GET", `${path}/${id}`, { key })).status).toBe(404);
  expect((await world.send("POST", `${path}/${id}/cancel`, { key })).status).toBe(404);
  expect((await world.send("GET", path, { key })).json.data).toEqual([]);

  const { run_id } = await fold(id, 1);
  await eventually("the run", () => world.deps.store.runs.get("default", run_id));
  expect((await world.send("POST", `${path}/${id}/cancel`)).json.status).toBe("cancelling");
  const ended = await eventually("the end", async () => {
    const now = await get(`${path}/${id}`);
    return now.status === "cancelled" && now;
  });
  expect(ended.runs.map((one: Json) => [one.status, one.reason])).toEqual([
    ["cancelled", "cancelled: the cross-validation was cancelled"],
  ]);
  expect((await get(`/api/runs/${run_id}`)).status).toBe("cancelled");
  await world.send("POST", `/api/sweeps/${sweep.id}/cancel`);
});
