/** Checkpoints by name: asked, tuned further, pruned, and by who has no right to them. */
import { existsSync, rmSync } from "node:fs";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { AppError } from "../../src/domain/error.js";
import { FakeExporter } from "../fake-exporter.js";
import { tunedRun } from "./tuned.js";
import { type Answer, createWorld, FakeInference, type World } from "./world.js";

let world: World;
beforeAll(async () => {
  world = await createWorld();
});
beforeEach(() => {
  Object.assign(world.inference, new FakeInference());
  Object.assign(world.exporter, new FakeExporter());
});
afterAll(() => world.close());

const ask = (model: string, key = world.key): Promise<Answer> =>
  world.send("POST", "/v1/chat/completions", { body: { model, messages: [{ role: "user", content: "x" }] }, key });
const tune = async (model: string, key = world.key): Promise<Answer> =>
  world.send("POST", "/v1/fine_tuning/jobs", { body: { model, training_file: await world.upload() }, key });

test("a checkpoint of a run that failed answers: it is written as a model once, with what its run began with", async () => {
  const { checkpoint, folder } = await tunedRun(world);
  expect((await ask(checkpoint)).json.model).toBe(checkpoint);
  expect((await ask(checkpoint)).status).toBe(200);
  expect(world.exporter.checkpoints).toEqual([
    { runFolder: folder(), step: 5, basePath: "/models/smollm2", adapterPath: null, out: folder("models", "5") },
  ]);
  expect(world.inference.requests[0]?.target).toEqual({
    basePath: "/models/smollm2",
    adapterPath: folder("models", "5"),
    family: "decoder",
    task: "chat",
  });
});

test("a checkpoint of a full tune is a base of its own; one of a classifier classifies; each family embeds", async () => {
  const classifier = { baseModel: "minilm", family: "encoder", task: "classification", labels: ["a", "b"] } as const;
  const { checkpoint, folder } = await tunedRun(world, { ...classifier, labels: ["a", "b"], method: "full" });
  const classified = await world.send("POST", "/api/classify", { body: { model: checkpoint, input: "x" } });
  expect(classified.json.data[0].label).toBe("spam");
  expect((await world.send("POST", "/v1/embeddings", { body: { model: checkpoint, input: "x" } })).status).toBe(200);
  const translator = await tunedRun(world, {
    baseModel: "org/tiny-t5",
    family: "seq2seq",
    task: "seq2seq",
    method: "full",
  });
  const body = { model: translator.checkpoint, prompt: "x" };
  expect((await world.send("POST", "/v1/completions", { body })).status).toBe(200);
  expect(world.inference.requests[0]?.target).toMatchObject({
    basePath: translator.folder("models", "5"),
    adapterPath: null,
  });
  expect(world.exporter.checkpoints.map((one) => one.out)).toEqual([
    folder("models", "5"),
    translator.folder("models", "5"),
  ]);
});

test("a job may begin with a checkpoint, which then stays although its own run prunes it", async () => {
  const { checkpoint, folder } = await tunedRun(world);
  const { json } = await tune(checkpoint);
  expect(json).toMatchObject({ object: "fine_tuning.job", model: checkpoint });
  expect(existsSync(folder("models", "5", "fettle.json"))).toBe(true);
  rmSync(folder("checkpoints", "5"), { recursive: true });
  expect((await ask(checkpoint)).status).toBe(200);
  expect(world.exporter.checkpoints).toHaveLength(1);
});

test("a checkpoint that is on the disk no more says so, and names what is left", async () => {
  const { run, checkpoint, folder, model } = await tunedRun(world);
  rmSync(folder("checkpoints", "5"), { recursive: true });
  const error = {
    code: "model_unavailable",
    param: "model",
    message: expect.stringContaining(`The checkpoint "${checkpoint}" is no longer on this disk`),
  };
  expect((await ask(checkpoint)).json.error).toMatchObject(error);
  expect((await tune(checkpoint)).json.error).toMatchObject(error);
  await world.deps.store.runs.update(run.id, (now) => ({ run: { ...now, fineTunedModel: model }, events: [] }));
  expect((await ask(checkpoint)).json.error.message).toContain(`Use "${model}".`);
  expect(world.exporter.checkpoints).toEqual([]);
});

test("one that was struck off the list while it was written is taken away again", async () => {
  const { run, checkpoint, folder } = await tunedRun(world);
  let goOn = (): void => undefined;
  world.exporter.hold = new Promise((resolve) => {
    goOn = resolve;
  });
  const answer = ask(checkpoint);
  await expect.poll(() => world.exporter.checkpoints.length).toBe(1);
  const lease = await world.deps.store.runs.acquire(run.id, "test", { ttlMs: 60_000 });
  if (lease === null) throw new Error("the lease is taken");
  await world.deps.store.runs.ingest(lease, { events: [], offset: 2, checkpoints: [], goneCheckpoints: [5] });
  goOn();
  expect((await answer).json.error.code).toBe("model_unavailable");
  expect(existsSync(folder("models", "5"))).toBe(false);
  expect((await ask(checkpoint)).json.error.code).toBe("model_not_found");
});

test("a refusal of the writer reaches the caller with its code", async () => {
  const { checkpoint } = await tunedRun(world);
  world.exporter.failure = new AppError("disk_full", "The disk is full.");
  const answer = await ask(checkpoint);
  expect([answer.status, answer.json.error.code]).toEqual([507, "disk_full"]);
});

test("another project's checkpoint does not exist, for asking, tuning, looking, deleting and exporting", async () => {
  const { checkpoint } = await tunedRun(world);
  const key = await world.newKey("stranger");
  const path = `/v1/models/${encodeURIComponent(checkpoint)}`;
  const answers = [
    await ask(checkpoint, key),
    await world.send("POST", "/v1/fine_tuning/jobs", { body: { model: checkpoint, training_file: "file-x" }, key }),
    await world.send("GET", path, { key }),
    await world.send("DELETE", path, { key }),
    await world.send("GET", `/api/models/${encodeURIComponent(checkpoint)}/export`, { key }),
  ];
  for (const answer of answers) expect([answer.status, answer.json.error.code]).toEqual([404, "model_not_found"]);
  expect(world.exporter.checkpoints).toEqual([]);
});

test("deleting the tuned model leaves its checkpoints usable; a checkpoint itself is not deleted", async () => {
  const { model, checkpoint, folder } = await tunedRun(world);
  expect((await world.send("DELETE", `/v1/models/${encodeURIComponent(checkpoint)}`)).json.error).toMatchObject({
    code: "permission_denied",
    message: `"${checkpoint}" is a checkpoint: only tuned models can be deleted.`,
  });
  expect((await world.send("DELETE", `/v1/models/${encodeURIComponent(model)}`)).json.deleted).toBe(true);
  expect(existsSync(folder("artefact"))).toBe(false);
  expect((await ask(model)).status).toBe(404);
  expect((await ask(checkpoint)).status).toBe(200);
});

test("a checkpoint of a tune of a tune needs the first one, and says so when it was deleted", async () => {
  const first = await tunedRun(world);
  const second = await tunedRun(world, { model: first.model });
  const third = await tunedRun(world, { model: first.model });
  expect((await ask(second.checkpoint)).status).toBe(200);
  expect(world.exporter.checkpoints[0]).toMatchObject({ adapterPath: first.folder("artefact") });
  await world.send("DELETE", `/v1/models/${encodeURIComponent(first.model)}`);
  expect((await ask(second.checkpoint)).status).toBe(200);
  expect((await ask(third.checkpoint)).json.error).toMatchObject({
    code: "model_unavailable",
    message: expect.stringContaining(`"${third.checkpoint}" needs the model its run began with, and that is gone`),
  });
});
