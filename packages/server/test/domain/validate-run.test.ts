import { createHash } from "node:crypto";
import type { CanonicalRow } from "@fettle/contract";
import { describe, expect, it } from "vitest";
import type { BaseModel, Blobs, DataReport, FileRecord, NewRunEvent, Store } from "../../src/app/ports.js";
import { readHeldOut } from "../../src/app/held-out.js";
import { validateRun, type ValidateRunDeps } from "../../src/app/validate-run.js";
import type { Run } from "../../src/domain/job.js";

const model = (change: Partial<BaseModel>): BaseModel => ({
  name: "smol",
  family: "decoder",
  path: "/m",
  numParameters: 134_515_008,
  hiddenSize: 576,
  numLayers: 30,
  vocabSize: 49_152,
  contextLength: 8192,
  licence: "",
  source: "local",
  ...change,
});
const models = [
  model({}),
  model({
    name: "mini",
    family: "encoder",
    numParameters: 22_713_216,
    hiddenSize: 384,
    numLayers: 6,
    vocabSize: 30_522,
    contextLength: 512,
  }),
  model({ name: "llama-8b", numParameters: 8.03e9, hiddenSize: 4096, numLayers: 32, vocabSize: 128_256 }),
];

const chatRow = (line: number): CanonicalRow => ({
  line,
  messages: [
    { role: "user", content: `question ${line}` },
    { role: "assistant", content: "answer" },
  ],
});
const classRow = (line: number): CanonicalRow => ({
  line,
  text: `text ${line}`,
  label: line % 2 === 0 ? "ham" : "spam",
});

interface Setting {
  rows?: CanonicalRow[];
  kind?: DataReport["kind"];
  run?: Partial<Run>;
  file?: Partial<FileRecord>;
  memoryBytes?: number;
  validationRows?: CanonicalRow[];
}

/** One run and its files in memory. */
function world({
  rows = Array.from({ length: 100 }, (_, index) => chatRow(index + 1)),
  kind = "chat",
  validationRows,
  ...setting
}: Setting = {}) {
  const blobs = new Map<string, Buffer>();
  const files = new Map<string, FileRecord>();
  const addFile = (id: string, content: CanonicalRow[], change: Partial<FileRecord> = {}): void => {
    const bytes = Buffer.from(content.map((row) => `${JSON.stringify(row)}\n`).join(""));
    blobs.set(`files/${id}/rows.jsonl`, bytes);
    const labels: Record<string, number> = {};
    for (const row of content) if ("label" in row) labels[row.label] = (labels[row.label] ?? 0) + 1;
    const report: DataReport = {
      format: "jsonl",
      kind,
      numRows: content.length,
      numUsable: content.length,
      numFaults: 0,
      faults: [],
      notices: [],
      labels: kind === "classification" ? labels : null,
      rowsSha256: "0".repeat(64),
    };
    files.set(id, {
      id,
      projectId: "p",
      filename: "x",
      purpose: "fine-tune",
      bytes: 1,
      sha256: "",
      status: "processed",
      statusDetails: null,
      createdAt: 0,
      expiresAt: null,
      report,
      deletedAt: null,
      ...change,
    });
  };
  addFile("file-t", rows, setting.file);
  if (validationRows !== undefined) addFile("file-v", validationRows);
  let run: Run = {
    id: "ftjob-1",
    projectId: "p",
    createdAt: 0,
    status: "validating_files",
    wanted: null,
    model: "smol",
    baseModel: "smol",
    family: "decoder",
    trainingFile: "file-t",
    validationFile: validationRows === undefined ? null : "file-v",
    seed: 7,
    metadata: null,
    request: { suffix: null, task: null, method: null, hyperparameters: {}, integrations: null },
    task: null,
    method: null,
    hyperparameters: null,
    labels: null,
    estimate: null,
    attempt: 0,
    startedAt: null,
    finishedAt: null,
    step: 0,
    totalSteps: null,
    etaAt: null,
    trainedTokens: null,
    fineTunedModel: null,
    resultFile: null,
    error: null,
    waiting: null,
    ...setting.run,
  };
  const events: NewRunEvent[] = [];
  const memory: Pick<Blobs, "get" | "put"> = {
    async put(key, body) {
      const parts: Uint8Array[] = [];
      for await (const part of body) parts.push(part);
      blobs.set(key, Buffer.concat(parts));
      return { bytes: 0, sha256: createHash("sha256").update(Buffer.concat(parts)).digest("hex") };
    },
    async get(key) {
      const bytes = blobs.get(key);
      return bytes === undefined
        ? null
        : (async function* () {
            for (let at = 0; at < bytes.length; at += 100) yield bytes.subarray(at, at + 100);
          })();
    },
  };
  const store = {
    files: { get: async (_project: string, id: string) => files.get(id) ?? null },
    models: { get: async () => null, checkpoint: async () => null, list: async () => [] },
    runs: {
      update: async (_id: string, change: (current: Run) => { run: Run; events: NewRunEvent[] } | null) => {
        const next = change(run);
        if (next === null) return null;
        run = next.run;
        events.push(...next.events);
        return run;
      },
    },
  } as unknown as Store;
  const deps: ValidateRunDeps = {
    store,
    blobs: memory as Blobs,
    catalogue: {
      list: async () => models,
      find: async (name) => models.find((one) => one.name === name) ?? null,
      prepare: async () => model({}),
    },
    clock: { now: () => 1000, every: () => () => undefined, sleep: async () => undefined },
    ids: { make: (prefix) => `${prefix}${events.length}`, bytes: (n) => new Uint8Array(n) },
    machine: { memoryBytes: setting.memoryBytes ?? 16e9, cores: 2 },
  };
  return {
    validate: () => validateRun(deps, run),
    run: () => run,
    events,
    blobs,
    deps,
    text: (key: string) => blobs.get(key)?.toString() ?? "",
  };
}

describe("validateRun", () => {
  it("resolves everything, holds rows out, and says why", async () => {
    const { validate, run, events, deps, text } = world();
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
    expect(split?.train_sha256).toBe(createHash("sha256").update(text("runs/ftjob-1/rows/train.jsonl")).digest("hex"));
    const lines = [
      ...text("runs/ftjob-1/rows/train.jsonl").trim().split("\n"),
      ...text("runs/ftjob-1/rows/validation.jsonl").trim().split("\n"),
    ];
    expect(lines.map((line) => JSON.parse(line).line).sort((a, b) => a - b)).toEqual(
      Array.from({ length: 100 }, (_, index) => index + 1),
    );
    expect(await validate()).toBe("gone");
  });

  it("waits for a file that is still being read", async () => {
    const { validate, run } = world({ file: { status: "uploaded", report: null } });
    expect(await validate()).toBe("waiting");
    expect(run().status).toBe("validating_files");
  });

  it("finds the classes", async () => {
    const { validate, run } = world({
      rows: Array.from({ length: 60 }, (_, index) => classRow(index)),
      kind: "classification",
      run: { model: "mini", baseModel: "mini", family: "encoder" },
    });
    expect(await validate()).toBe("queued");
    expect(run()).toMatchObject({ task: "classification", method: "full", labels: ["ham", "spam"] });
  });

  it("warns when validation asks what training asks", async () => {
    const { validate, events } = world({ validationRows: [chatRow(1), chatRow(2), chatRow(900)] });
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
      'mini is an encoder, which cannot learn from chat rows (messages). Use a decoder for these rows, or give a file of classification rows (text and label). The model "smol" can use this file.',
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
    const { validate, run, events } = world(setting);
    expect(await validate()).toBe("failed");
    expect(run()).toMatchObject({ status: "failed", error: { code, param, message }, finishedAt: 1000 });
    expect(events.at(-1)).toMatchObject({ level: "error", message: `${code}: ${message}` });
  });
});
