/** Runs that learn from a teacher: asked for, shown, refused, and what keeps the teacher there. */
import { existsSync } from "node:fs";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { Run } from "../../src/domain/job.js";
import { sampleRun } from "../store/samples.js";
import { type TunedRun, tunedRun } from "./tuned.js";
import { createWorld, type World } from "./world.js";

let world: World;
let file: string;
let teacher: TunedRun;
beforeAll(async () => {
  world = await createWorld();
  file = await world.upload();
});
beforeEach(async () => {
  teacher = await tunedRun(world, classifier);
});
afterAll(() => world.close());

const classifier: Partial<Run> = {
  baseModel: "minilm",
  family: "encoder",
  task: "classification",
  method: "full",
  labels: ["ham", "spam"],
};
const start = (body: object = {}, key?: string) =>
  world.send("POST", "/api/runs", {
    body: { model: "minilm", training_file: file, teacher: teacher.model, ...body },
    ...(key !== undefined && { key }),
  });
const remove = (name: string) => world.send("DELETE", `/v1/models/${encodeURIComponent(name)}`);

describe("a teacher", () => {
  it("is shown with its run, over both surfaces", async () => {
    const { json } = await start();
    expect(json.teacher).toBe(teacher.model);
    const job = (await world.send("GET", `/v1/fine_tuning/jobs/${json.id}`)).json;
    expect(job.method.supervised.teacher).toBe(teacher.model);
    const asked = { type: "supervised", supervised: { teacher: teacher.model } };
    const made = await world.send("POST", "/v1/fine_tuning/jobs", {
      body: { model: "minilm", training_file: file, method: asked },
    });
    expect((await world.send("GET", `/api/runs/${made.json.id}`)).json.teacher).toBe(teacher.model);
    expect((await start({ teacher: null })).json.teacher).toBeNull();
  });

  it("may be a checkpoint, which is then written as a model", async () => {
    expect((await start({ teacher: teacher.checkpoint })).status).toBe(200);
    expect(existsSync(teacher.folder("models", "5"))).toBe(true);
  });

  it("of another project does not exist", async () => {
    const key = await world.newKey("stranger");
    const { status, json } = await start({}, key);
    expect([status, json.error.code, json.error.param]).toEqual([404, "model_not_found", "teacher"]);
  });

  it("is refused where it cannot teach, with one that could", async () => {
    const other = await tunedRun(world, { ...classifier, task: "regression", labels: null });
    expect((await start({ teacher: "minilm" })).json.error).toMatchObject({
      code: "incompatible_method",
      param: "teacher",
      message: expect.stringMatching(/^"minilm" is a base model.* The model "ft:minilm:.*" could teach it\.$/),
    });
    expect((await start({ task: "regression" })).json.error.message).toMatch(
      /was tuned for the task "classification": expected a teacher tuned for regression\. The model "ft:minilm:.*" could/,
    );
    expect((await start({ task: "regression", teacher: other.model })).status).toBe(200);
    expect((await start({ task: "embedding" })).json.error.message).toContain(
      'The task "embedding" is not learnt from a teacher',
    );
  });
});

describe("a model that is needed", () => {
  it("stays until the run that learns from it has ended", async () => {
    const { json } = await start();
    const refused = await remove(teacher.model);
    expect([refused.status, refused.json.error.code]).toEqual([409, "conflict"]);
    expect(refused.json.error.message).toContain(`is needed by ${json.id}, which has not ended`);
    expect(existsSync(teacher.folder("artefact"))).toBe(true);
    await world.send("POST", `/api/runs/${json.id}/cancel`);
    expect((await remove(teacher.model)).json.deleted).toBe(true);
    expect(existsSync(teacher.folder("artefact"))).toBe(false);
  });

  it("stays until the run that begins with it has ended", async () => {
    const { json } = await start({ model: teacher.model, teacher: null, method: "full" });
    expect((await remove(teacher.model)).json.error.message).toContain(`is needed by ${json.id}`);
    await world.send("POST", `/api/runs/${json.id}/cancel`);
    expect((await remove(teacher.model)).json.deleted).toBe(true);
  });

  it("stays for a sweep, which hands it to its trials", async () => {
    const { json } = await world.send("POST", "/api/sweeps", {
      body: {
        model: "minilm",
        training_file: file,
        teacher: teacher.model,
        space: { distill_weight: { values: [0.2, 0.8] } },
      },
    });
    expect(json.teacher).toBe(teacher.model);
    expect((await remove(teacher.model)).json.error.message).toContain(`is needed by ${json.id}`);
    const vain = { model: "minilm", training_file: file, space: { distill_weight: { values: [0.2] } } };
    expect((await world.send("POST", "/api/sweeps", { body: vain })).json.error).toMatchObject({
      code: "value_out_of_range",
      param: "space.distill_weight",
      message: expect.stringContaining("no teacher is named"),
    });
  });

  it("stays for a cross-validation, which hands it to its folds", async () => {
    const body = { model: "minilm", training_file: file, teacher: teacher.model };
    const { json } = await world.send("POST", "/api/cross-validations", { body });
    expect(json.teacher).toBe(teacher.model);
    expect((await remove(teacher.model)).json.error.message).toContain(`is needed by ${json.id}`);
  });

  it("is deleted, or its run is made, never both", async () => {
    for (let round = 0; round < 10; round++) {
      const { model } = await tunedRun(world, classifier);
      const run = sampleRun({ projectId: "default", trainingFile: file });
      const [created, deleted] = await Promise.all([
        world.deps.store.runs.create({ ...run, request: { ...run.request, teacher: model } }, []),
        world.deps.store.models.delete("default", model),
      ]);
      expect([created, deleted.needed_by]).toEqual(created === "created" ? ["created", run.id] : ["model_gone", null]);
    }
  });
});
