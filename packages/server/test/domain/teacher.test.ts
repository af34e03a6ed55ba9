/** Whose answers a run may learn, and what is decided about a run that learns some. */
import type { Task } from "@fettle/contract";
import { describe, expect, it } from "vitest";
import type { ModelRecord } from "../../src/app/ports.js";
import { buildTrainSpec } from "../../src/app/train-spec.js";
import { type Teaching, teacherRefusal } from "../../src/domain/teacher.js";
import { chatRow, classRow, type Setting, world } from "./validate-world.js";

describe("teacherRefusal", () => {
  const teaching: Teaching = {
    teacher: "ft:a",
    tunedFor: "classification",
    knows: ["ham", "spam"],
    task: "classification",
    labels: ["spam", "ham"],
    candidates: [],
  };
  const saying = (change: Partial<Teaching>): string | null =>
    teacherRefusal({ ...teaching, ...change })?.message ?? null;

  it("lets the same labels teach, in whatever order, and what is not known yet", () => {
    expect(saying({})).toBeNull();
    expect(saying({ task: null, labels: null })).toBeNull();
    expect(saying({ tunedFor: "regression", knows: null, task: "regression", labels: null })).toBeNull();
  });

  it.each<[Partial<Teaching>, string]>([
    [
      { task: "chat" },
      'The task "chat" is not learnt from a teacher: only classification, multilabel_classification and regression are, whose rows have one answer each. Leave the teacher out.',
    ],
    [
      { tunedFor: null },
      '"ft:a" is a base model, which gives no answers to learn from: expected a model tuned for classification. Tune a model for it first and name that one, or leave the teacher out.',
    ],
    [
      { tunedFor: "chat", task: null, labels: null },
      '"ft:a" was tuned for the task "chat": expected a teacher tuned for classification, multilabel_classification and regression. Tune a model for it first and name that one, or leave the teacher out.',
    ],
    [
      { labels: ["ham", "eggs"], candidates: [{ name: "ft:b", task: "classification", labels: ["eggs", "ham"] }] },
      '"ft:a" has other labels than this run: it does not know "eggs", and the training file has no row of its "spam". The model "ft:b" could teach it.',
    ],
    [
      { labels: ["ham", "eggs", "spam"] },
      '"ft:a" has other labels than this run: it does not know "eggs". Tune a model for it first and name that one, or leave the teacher out.',
    ],
  ])("%j is refused", (change, message) => {
    expect(saying(change)).toBe(message);
  });
});

const record = (name: string, task: Task, labels: string[] | null): ModelRecord => ({
  name,
  projectId: "p",
  runId: "ftjob-0",
  baseModel: "mini",
  task,
  method: "full",
  artefact: "runs/ftjob-0/artefact",
  artefactSha256: "",
  labels,
  createdAt: 0,
});
const request = { suffix: null, task: null, method: null, hyperparameters: {}, integrations: null };

/** A run of 40 classified texts that is taught by `teacher`. */
const taught = (teacher: ModelRecord, change: Setting = {}, hyperparameters: object = {}) =>
  world({
    rows: Array.from({ length: 40 }, (_, n) => classRow(n + 1)),
    kind: "classification",
    models: [teacher],
    ...change,
    run: {
      model: "mini",
      baseModel: "mini",
      family: "encoder",
      request: { ...request, teacher: teacher.name, hyperparameters },
      ...change.run,
    },
  });
const known = record("ft:mini:p::teacher0", "classification", ["ham", "spam"]);

describe("a taught run", () => {
  it("says whom it learns from and how much, and hands it to the trainer", async () => {
    const { validate, run, events, deps } = await taught(known);
    expect(await validate()).toBe("queued");
    expect(run().hyperparameters).toMatchObject({ distill_weight: 0.5, distill_temperature: 2 });
    const messages = events.map(({ message }) => message);
    expect(messages).toContain(
      "Teacher: ft:mini:p::teacher0, tuned from mini. It answers each row to train on once, before the first step; its answers are learnt beside the labels.",
    );
    expect(messages).toContain("distill_weight chosen: 0.5 (labels and teacher count the same).");
    const spec = await buildTrainSpec(
      deps,
      { ...run(), attempt: 1 },
      { numThreads: 1, checkpointSeconds: 60, layers: "auto" },
    );
    expect(spec.teacher).toEqual({
      name: "ft:mini:p::teacher0",
      family: "encoder",
      path: deps.blobs.localPath("runs/ftjob-0/artefact"),
      adapter_path: null,
    });
    const plain = await world();
    await plain.validate();
    expect(plain.events.map(({ message }) => message).join("\n")).not.toContain("distill");
    const without = await buildTrainSpec(plain.deps, plain.run(), {
      numThreads: 1,
      checkpointSeconds: 60,
      layers: "auto",
    });
    expect(without).not.toHaveProperty("teacher");
  });

  it.each<[string, () => ReturnType<typeof world>, string, string]>([
    ["of other labels", () => taught(record("ft:t", "classification", ["a"])), "teacher", "ham"],
    [
      "of rows that have no one answer",
      () =>
        taught(known, {
          rows: Array.from({ length: 40 }, (_, n) => chatRow(n + 1)),
          kind: "chat",
          run: { model: "smol", baseModel: "smol", family: "decoder", request: { ...request, teacher: known.name } },
        }),
      "teacher",
      'The task "chat" is not learnt from a teacher',
    ],
    ["whose teacher is gone", () => taught(known, { models: [] }), "teacher", "does not exist"],
    [
      "with settings of a teacher and none",
      () => taught(known, { run: { request: { ...request, hyperparameters: { distill_weight: 0.3 } } } }),
      "hyperparameters.distill_weight",
      "distill_weight is 0.3, but the run has no teacher",
    ],
    [
      "with a teacher too large for this machine",
      () => taught({ ...known, baseModel: "llama-8b" }, { memoryBytes: 4e9 }),
      "teacher",
      "Choose a smaller teacher",
    ],
  ])("%s is refused", async (_, make, param, message) => {
    const { validate, run } = await make();
    expect(await validate()).toBe("failed");
    expect(run().error).toMatchObject({ param, message: expect.stringContaining(message) });
  });

  it("of numbers has no temperature", async () => {
    const rows = Array.from({ length: 40 }, (_, n) => ({ line: n + 1, text: `t ${n}`, score: n % 5 }));
    const teacher = record("ft:n", "regression", null);
    const good = await taught(teacher, { rows, kind: "score" });
    expect(await good.validate()).toBe("queued");
    const bad = await taught(teacher, { rows, kind: "score" }, { distill_temperature: 3 });
    expect(await bad.validate()).toBe("failed");
    expect(bad.run().error).toMatchObject({ param: "hyperparameters.distill_temperature" });
  });

  it("counts the teacher's work and memory", async () => {
    const plain = await taught(known, { run: { request } });
    const large = await taught({ ...known, baseModel: "smol" });
    expect([await plain.validate(), await large.validate()]).toEqual(["queued", "queued"]);
    const [without, having] = [plain.run().estimate, large.run().estimate];
    expect(having?.seconds[1]).toBeGreaterThan(without?.seconds[1] ?? Infinity);
    expect(having?.memoryBytes).toBeGreaterThan(without?.memoryBytes ?? Infinity);
  });
});
