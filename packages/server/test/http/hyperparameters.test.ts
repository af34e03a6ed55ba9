/** What a user is told, word for word, when a hyperparameter cannot be: over OpenAI's route and over ours. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { freshId, storedRun } from "../store/samples.js";
import { createWorld, type World } from "./world.js";

let world: World;
let file: string;
beforeAll(async () => {
  world = await createWorld();
  file = await world.upload();
});
afterAll(() => world.close());

const send = async (path: string, body: object) => {
  const request = { model: "smollm2-135m-instruct", training_file: file, ...body };
  const { status, json } = await world.send("POST", path, { body: request });
  return { status, ...json.error } as { status: number; code: string; param: string; message: string };
};
const supervised = (hyperparameters: object): object => ({
  method: { type: "supervised", supervised: { hyperparameters } },
});

const typicalRates = "Typical: 0.0002 for lora, 0.00002 to 0.00005 for full, 0.001 for head.";
const out = "value_out_of_range";
const cases: [field: string, value: unknown, code: string, shown: string, expected: string, advice: string][] = [
  ["learning_rate", 2, out, "2", "a number above 0, at most 0.1", typicalRates],
  ["learning_rate", 0, out, "0", "a number above 0, at most 0.1", typicalRates],
  ["learning_rate", "fast", "invalid_request", '"fast"', "a number above 0, at most 0.1", typicalRates],
  [
    "learning_rate_multiplier",
    0,
    out,
    "0",
    "a number above 0, at most 100",
    "Typical: 0.5 to 2; it scales the learning rate.",
  ],
  [
    "learning_rate_multiplier",
    101,
    out,
    "101",
    "a number above 0, at most 100",
    "Typical: 0.5 to 2; it scales the learning rate.",
  ],
  ["num_train_epochs", 0, out, "0", "a whole number from 1 to 50", "Typical: 1 to 5."],
  ["num_train_epochs", 1.5, "invalid_request", "1.5", "a whole number from 1 to 50", "Typical: 1 to 5."],
  ["max_length", 7, out, "7", "a whole number from 8 to 131072", "Leave it out to have it chosen."],
  ["lora_r", 513, out, "513", "a whole number from 1 to 512", "Typical: 8 to 64."],
  [
    "target_modules",
    [],
    out,
    "a list of 0",
    '"all-linear" or a list of 1 to 64 module names',
    "Leave it out to have it chosen.",
  ],
  [
    "lr_scheduler_type",
    "step",
    "invalid_request",
    '"step"',
    '"linear", "cosine" or "constant"',
    "Leave it out to have it chosen.",
  ],
];

describe.each(cases)("%s %j", (field, value, code, shown, expected, advice) => {
  test("over POST /api/runs", async () => {
    const param = `hyperparameters.${field}`;
    const message = `\`${param}\` is ${shown}: expected ${expected}. ${advice}`;
    expect(await send("/api/runs", { hyperparameters: { [field]: value } })).toMatchObject({
      status: 400,
      code,
      param,
      message,
    });
  });
  test("over POST /v1/fine_tuning/jobs, where auto may stand too", async () => {
    const param = `method.supervised.hyperparameters.${field}`;
    const message = `\`${param}\` is ${shown}: expected ${expected}, or "auto". ${advice}`;
    expect(await send("/v1/fine_tuning/jobs", supervised({ [field]: value }))).toMatchObject({
      status: 400,
      code,
      param,
      message,
    });
  });
});

test("OpenAI's own names are told with their bounds", async () => {
  expect(await send("/v1/fine_tuning/jobs", { hyperparameters: { n_epochs: 0 } })).toMatchObject({
    code: out,
    param: "hyperparameters.n_epochs",
    message: '`hyperparameters.n_epochs` is 0: expected a whole number from 1 to 50, or "auto". Typical: 1 to 5.',
  });
  expect(await send("/v1/fine_tuning/jobs", { hyperparameters: { batch_size: 257 } })).toMatchObject({
    code: out,
    param: "hyperparameters.batch_size",
    message: '`hyperparameters.batch_size` is 257: expected a whole number from 1 to 256, or "auto". Typical: 4 to 32.',
  });
});

describe("another rank than the adapter's", () => {
  let name: string;
  beforeAll(async () => {
    const { deps } = world;
    const run = await storedRun(deps.store, { projectId: "default" });
    name = `ft:smollm2-135m-instruct:default::${run.id.slice(-8)}`;
    const artefact = `runs/${run.id}/artefact`;
    mkdirSync(deps.blobs.localPath(artefact), { recursive: true });
    const config = { peft_type: "LORA", r: 4, lora_alpha: 8, target_modules: ["q_proj"] };
    writeFileSync(join(deps.blobs.localPath(artefact), "adapter_config.json"), JSON.stringify(config));
    const lease = await deps.store.runs.acquire(run.id, freshId("owner-"), { ttlMs: 60_000 });
    if (lease === null) throw new Error("no lease");
    await deps.store.runs.ingest(lease, {
      events: [],
      offset: 1,
      checkpoints: [],
      model: {
        name,
        projectId: "default",
        runId: run.id,
        baseModel: "smollm2-135m-instruct",
        task: "chat",
        method: "lora",
        artefact,
        artefactSha256: "0".repeat(64),
        labels: null,
        createdAt: 0,
      },
    });
  });
  const message = (): string =>
    `lora_r is 16, but ${name} was made with 4: a run that goes on keeps its adapter's shape. Leave lora_r out, or begin from the base model.`;

  test("is refused when the run is sent, at the place where it was given", async () => {
    const wanted = { lora_r: 16 };
    const own = await send("/api/runs", { model: name, hyperparameters: wanted });
    expect(own).toMatchObject({ status: 400, code: out, param: "hyperparameters.lora_r", message: message() });
    const job = await send("/v1/fine_tuning/jobs", { model: name, ...supervised(wanted) });
    expect(job).toMatchObject({ code: out, param: "method.supervised.hyperparameters.lora_r", message: message() });
    const old = await send("/v1/fine_tuning/jobs", { model: name, hyperparameters: wanted });
    expect(old).toMatchObject({ code: out, param: "hyperparameters.lora_r", message: message() });
  });

  test("the adapter's own rank, auto, or none is taken", async () => {
    for (const body of [{}, supervised({ lora_r: "auto" }), supervised({ lora_r: 4 })])
      expect(await send("/v1/fine_tuning/jobs", { model: name, ...body })).toMatchObject({ status: 200 });
  });
});
