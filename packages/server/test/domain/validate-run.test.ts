import { createHash } from "node:crypto";
import { type CanonicalRow, type Hyperparameters, trainSpecSchema } from "@fettle/contract";
import { describe, expect, it } from "vitest";
import { readHeldOut } from "../../src/app/held-out.js";
import { buildTrainSpec } from "../../src/app/train-spec.js";
import { chatRow, classRow, preferenceRow, type Setting, world } from "./validate-world.js";

const oneGroup = Array.from({ length: 20 }, (_, index) => ({ ...chatRow(index + 1), group: "one" }));

function never(): never {
  throw new Error("the run has no hyperparameters");
}

describe("validateRun", () => {
  it("resolves everything, holds rows out, and says why", async () => {
    const { validate, run, events, deps, text } = await world();
    expect(await validate()).toBe("queued");
    expect(run()).toMatchObject({
      status: "queued",
      task: "chat",
      method: "lora",
      labels: null,
      hyperparameters: { num_train_epochs: 3, learning_rate: 5e-4 },
    });
    expect(run().estimate?.memoryBytes).toBeGreaterThan(0.7e9);
    const messages = events.map((event) => event.message);
    expect(messages).toContain("Task chosen: chat, because smol is a decoder and the file holds chat rows (messages).");
    expect(messages).toContain("num_train_epochs chosen: 3 (usual for 90 rows).");
    expect(messages).toContain(
      "10 rows are held out for validation, 90 are trained on; rows of one group or with the same question stay together.",
    );
    expect(messages.at(-1)).toBe("Files validated, moving job to queued state");
    const split = await readHeldOut(deps.blobs, "ftjob-1");
    expect(split?.train_sha256).toBe(
      createHash("sha256")
        .update(await text("runs/ftjob-1/rows/train.jsonl"))
        .digest("hex"),
    );
    const lines = [
      ...(await text("runs/ftjob-1/rows/train.jsonl")).trim().split("\n"),
      ...(await text("runs/ftjob-1/rows/validation.jsonl")).trim().split("\n"),
    ];
    expect(lines.map((line) => JSON.parse(line).line).sort((a, b) => a - b)).toEqual(
      Array.from({ length: 100 }, (_, index) => index + 1),
    );
    expect(await validate()).toBe("gone");
  });

  it("keeps a base in 4 bits where the machine can, and asks that only where it matters", async () => {
    const request = (method: "lora" | "qlora"): NonNullable<Setting["run"]> => ({
      request: { suffix: null, task: null, method, hyperparameters: {}, integrations: null },
    });
    const able = await world({ run: request("qlora") });
    expect(await able.validate()).toBe("queued");
    expect(able.run().method).toBe("qlora");
    expect(able.events.map(({ message }) => message).join()).toContain("The base is kept in 4 bits");
    const lack = { fourBitsLack: "the package bitsandbytes is not installed" };
    const unable = await world({ ...lack, run: request("qlora") });
    expect(await unable.validate()).toBe("failed");
    expect(unable.run().error).toMatchObject({ code: "incompatible_method", param: "method" });
    expect(unable.run().error?.message).toContain(
      'but the package bitsandbytes is not installed. Use the method "lora"',
    );
    const other = await world({ ...lack, run: request("lora") });
    expect(await other.validate()).toBe("queued");
    expect([able, unable, other].map(({ fourBitsAsked }) => fourBitsAsked())).toEqual([1, 1, 0]);
  });

  it.each([
    ["held out of the training file", {}, "runs/ftjob-1/rows/validation.jsonl"],
    ["of a validation file", { validationRows: [chatRow(1)] }, "files/file-v/rows.jsonl"],
    ["none, all being of one group", { rows: oneGroup }, null],
  ])("hands the trainer the rows it decided on, in every attempt: %s", async (_, setting, expected) => {
    const { validate, run, deps } = await world(setting);
    expect(await validate()).toBe("queued");
    for (const attempt of [1, 2]) {
      const { data } = await buildTrainSpec(
        deps,
        { ...run(), attempt },
        { numThreads: 1, checkpointSeconds: 60, layers: "auto" },
      );
      expect(data.validation_path).toBe(expected === null ? null : deps.blobs.localPath(expected));
    }
  });

  it("a run queued by an older Fettle is trained as it would have been then", async () => {
    const { validate, run, deps } = await world();
    await validate();
    const { sampling: _, distill_weight: __, distill_temperature: ___, ...older } = run().hyperparameters ?? never();
    const queued = { ...run(), attempt: 1, hyperparameters: older as Hyperparameters };
    const spec = await buildTrainSpec(deps, queued, { numThreads: 1, checkpointSeconds: 60, layers: "plain" });
    expect(trainSpecSchema.safeParse(spec).success).toBe(true);
    expect(spec.runtime).toMatchObject({ num_threads: 1, checkpoint_seconds: 60, layers: "plain" });
    expect(spec.hyperparameters).toEqual({ ...run().hyperparameters, sampling: "shuffled" });
  });

  it("decides a run of each further task, with its labels and its scores", async () => {
    const of = async (kind: "multilabel" | "score" | "entities" | "similarity", fields: (n: number) => object) => {
      const rows = Array.from({ length: 40 }, (_, n) => ({ line: n + 1, ...fields(n) }) as CanonicalRow);
      const mini = { model: "mini", baseModel: "mini", family: "encoder" as const };
      const { validate, run } = await world({ rows, kind, run: mini });
      expect(await validate()).toBe("queued");
      return run();
    };
    expect(await of("multilabel", (n) => ({ text: `t ${n}`, labels: n % 2 ? ["b", "a"] : ["a"] }))).toMatchObject({
      task: "multilabel_classification",
      labels: ["a", "b"],
    });
    const scored = await of("score", (n) => ({ text: `t ${n}`, score: n % 2 ? 10 : 30 }));
    expect(scored).toMatchObject({ task: "regression", labels: null });
    expect(scored.hyperparameters?.target_mean).toBeCloseTo(20, -1);
    expect(scored.hyperparameters?.target_std).toBeCloseTo(10, -1);
    expect(
      await of("entities", (n) => ({ text: `t ${n}`, entities: [{ start: 0, end: 1, label: "x" }] })),
    ).toMatchObject({ task: "token_classification", labels: ["x"] });
    expect(await of("similarity", (n) => ({ anchor: `a ${n}`, positive: `p ${n}` }))).toMatchObject({
      task: "embedding",
      hyperparameters: { per_device_train_batch_size: 16 },
    });
  });

  it("chooses for preferences what keeps the reference sharp, and says why", async () => {
    const rows = Array.from({ length: 100 }, (_, index) => preferenceRow(index + 1));
    const { validate, run, events } = await world({ rows, kind: "preference" });
    expect(await validate()).toBe("queued");
    expect(run()).toMatchObject({
      task: "preference",
      method: "lora",
      hyperparameters: { beta: 0.1, dropout: 0, lora_dropout: 0, num_train_epochs: 2, learning_rate: 1e-4 },
    });
    expect(events.map((event) => event.message)).toContain(
      "beta chosen: 0.1 (usual; higher stays nearer to the starting model).",
    );
  });

  it("refuses the task preference for chat rows with what works", async () => {
    const asked = { task: "preference" as const, method: null, suffix: null, hyperparameters: {}, integrations: null };
    const { validate, run } = await world({ run: { request: asked } });
    expect(await validate()).toBe("failed");
    expect(run().error).toMatchObject({
      code: "incompatible_method",
      param: "task",
      message:
        'The task "preference" cannot be done by smol (a decoder) with chat rows (messages). Use the task "chat", or leave it out.',
    });
  });

  it("chooses rows of one length for plain texts", async () => {
    const rows = Array.from({ length: 100 }, (_, index) => ({ line: index + 1, text: "word ".repeat(50) }));
    const { validate, run } = await world({ rows, kind: "text" });
    expect(await validate()).toBe("queued");
    expect(run()).toMatchObject({ task: "pretraining", method: "lora", hyperparameters: { max_length: 1024 } });
  });

  it("waits for a file that is still being read", async () => {
    const { validate, run } = await world({ file: { status: "uploaded", report: null } });
    expect(await validate()).toBe("waiting");
    expect(run().status).toBe("validating_files");
  });

  it("splits the same way again, and keeps every row of a group on one side", async () => {
    const rows = Array.from({ length: 60 }, (_, index) => ({ ...chatRow(index + 1), group: `g${index % 12}` }));
    const [first, second] = [await world({ rows }), await world({ rows })];
    await first.validate();
    await second.validate();
    const held = await first.text("runs/ftjob-1/rows/validation.jsonl");
    expect(held).toBe(await second.text("runs/ftjob-1/rows/validation.jsonl"));
    const groups = (text: string): string[] => [
      ...new Set(
        text
          .trim()
          .split("\n")
          .map((line) => JSON.parse(line).group as string),
      ),
    ];
    const trained = groups(await first.text("runs/ftjob-1/rows/train.jsonl"));
    expect(groups(held).length).toBeGreaterThan(0);
    expect(groups(held).filter((group) => trained.includes(group))).toEqual([]);
  });

  it("holds out one fold of a cross-validation, and hands the others over as files of the same bytes each time", async () => {
    const rows = Array.from({ length: 30 }, (_, index) => classRow(index));
    const bytes = new Map<string, Set<string>>();
    const held: number[] = [];
    for (const number of [0, 1, 2]) {
      const { validate, run, deps, text, events } = await world({
        rows,
        kind: "classification",
        run: { model: "mini", baseModel: "mini", family: "encoder", split: { seed: 3, fold: { number, of: 3 } } },
      });
      expect(await validate()).toBe("queued");
      expect(events.map(({ message }) => message).join()).toContain(
        `Fold ${number + 1} of 3: 10 rows are held out for validation, 20 are trained on`,
      );
      const { data } = await buildTrainSpec(deps, run(), { numThreads: 1, checkpointSeconds: 60, layers: "auto" });
      const others = [0, 1, 2].filter((fold) => fold !== number).map((fold) => `fold-${fold}.jsonl`);
      const paths = others.map((name) => deps.blobs.localPath(`runs/ftjob-1/rows/${name}`));
      expect([data.train_path, ...(data.more_train_paths ?? [])]).toEqual(paths);
      const trained = await Promise.all(others.map((name) => text(`runs/ftjob-1/rows/${name}`)));
      expect(data.train_sha256).toBe(createHash("sha256").update(trained.join("")).digest("hex"));
      const validation = await text("runs/ftjob-1/rows/validation.jsonl");
      held.push(
        ...validation
          .trim()
          .split("\n")
          .map((line) => JSON.parse(line).line),
      );
      for (const [at, content] of [...trained.entries(), ["held", validation] as const]) {
        const fold = at === "held" ? `fold-${number}.jsonl` : (others[at] ?? "");
        bytes.set(fold, (bytes.get(fold) ?? new Set()).add(content));
      }
    }
    expect(held.sort((a, b) => a - b)).toEqual(rows.map(({ line }) => line));
    expect([...bytes.values()].map(({ size }) => size)).toEqual([1, 1, 1]);
  });

  it("refuses folds that would be empty, and a class that one fold alone has is still known to all", async () => {
    const grouped = Array.from({ length: 40 }, (_, index) => ({ ...chatRow(index + 1), group: `g${index % 3}` }));
    const few = await world({ rows: grouped, run: { split: { seed: 3, fold: { number: 0, of: 5 } } } });
    expect(await few.validate()).toBe("failed");
    expect(few.run().error).toMatchObject({ code: "too_few_rows", param: "folds" });
    expect(few.run().error?.message).toContain("has 3 different rows, those of one group");
    const rows = Array.from({ length: 30 }, (_, index) => ({ ...classRow(index), ...(index === 5 && { label: "z" }) }));
    for (const number of [0, 1]) {
      const { validate, run } = await world({
        rows,
        kind: "classification",
        run: { model: "mini", baseModel: "mini", family: "encoder", split: { seed: 3, fold: { number, of: 2 } } },
      });
      expect(await validate()).toBe("queued");
      expect(run().labels).toEqual(["ham", "spam", "z"]);
    }
  });

  it("finds the classes", async () => {
    const { validate, run } = await world({
      rows: Array.from({ length: 60 }, (_, index) => classRow(index)),
      kind: "classification",
      run: { model: "mini", baseModel: "mini", family: "encoder" },
    });
    expect(await validate()).toBe("queued");
    expect(run()).toMatchObject({ task: "classification", method: "full", labels: ["ham", "spam"] });
  });

  it("warns when validation asks what training asks", async () => {
    const { validate, events } = await world({ validationRows: [chatRow(1), chatRow(2), chatRow(900)] });
    expect(await validate()).toBe("queued");
    expect(events.map((event) => event.message)).toContain(
      "2 of 3 validation rows ask what a training row asks too: validation will look better than it is.",
    );
  });

  const refusals: [string, Setting, string, string | null, string][] = [
    [
      "too few rows",
      { rows: [chatRow(1), chatRow(2)] },
      "too_few_rows",
      "training_file",
      "The training file file-t has 2 rows: expected at least 10. Add rows; 50 to 100 is where tuning begins to show.",
    ],
    [
      "a file with faults",
      { file: { status: "error", statusDetails: "1 fault in 9 rows, 8 usable.\nLine 3: …" } },
      "invalid_training_file",
      "training_file",
      "The training file file-t cannot be used: 1 fault in 9 rows, 8 usable.\nLine 3: …",
    ],
    [
      "a deleted file",
      { file: { deletedAt: 5 } },
      "file_not_usable",
      "training_file",
      "The training file file-t was deleted. Upload it again and start a new run.",
    ],
    [
      "an unknown model",
      { run: { model: "smoll" } },
      "model_not_found",
      "model",
      'The model "smoll" does not exist or you do not have access to it. Did you mean "smol"?',
    ],
    [
      "rows the model cannot use",
      { run: { model: "mini", baseModel: "mini", family: "encoder" } },
      "incompatible_method",
      "model",
      'mini is an encoder, which cannot learn from chat rows (messages). Use a decoder for these rows, or give a file of classification rows (text and label) or rows of several labels (text and labels) or scored texts (text and score), among others. The model "smol" can use this file.',
    ],
    [
      "a model too large, when the method is to blame",
      {
        run: {
          model: "llama-8b",
          baseModel: "llama-8b",
          request: { suffix: null, task: null, method: "full", hyperparameters: {}, integrations: null },
        },
        memoryBytes: 40e9,
      },
      "model_too_large",
      "method",
      'Training llama-8b with the method "full" needs about 129.4 GB of memory; this machine has 40.0 GB for it. The method "lora" would fit with about 33.7 GB.',
    ],
    [
      "a model too large whatever the method",
      { run: { model: "llama-8b", baseModel: "llama-8b" }, memoryBytes: 16e9 },
      "model_too_large",
      "model",
      'Training llama-8b with the method "lora" needs about 33.7 GB of memory; this machine has 16.0 GB for it. The model "smol" would fit with about 1.4 GB.',
    ],
    [
      "a learning rate of 2",
      {
        run: {
          request: {
            suffix: null,
            task: null,
            method: null,
            hyperparameters: { learning_rate: 2 },
            integrations: null,
          },
        },
      },
      "value_out_of_range",
      "hyperparameters.learning_rate",
      "learning_rate is 2: expected a number above 0, at most 0.1. Typical: 0.0002 for lora, 0.00002 to 0.00005 for full, 0.001 for head.",
    ],
  ];
  it.each(refusals)("refuses %s", async (_name, setting, code, param, message) => {
    const { validate, run, events, text } = await world(setting);
    expect(await validate()).toBe("failed");
    expect(run()).toMatchObject({ status: "failed", error: { code, param, message }, finishedAt: 1000 });
    expect(await text("runs/ftjob-1/rows/train.jsonl")).toBe("");
    expect(events.at(-1)).toMatchObject({ level: "error", message: `${code}: ${message}` });
  });
});
