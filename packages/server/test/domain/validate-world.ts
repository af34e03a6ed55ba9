/** One run with its files on a real disk; the store keeps just this run, in memory. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { CanonicalRow } from "@fettle/contract";
import { onTestFinished } from "vitest";
import type { BaseModel, DataReport, FileRecord, ModelRecord, NewRunEvent, Store } from "../../src/app/ports.js";
import { validateRun, type ValidateRunDeps } from "../../src/app/validate-run.js";
import { localBlobs } from "../../src/blobs/local.js";
import type { Run } from "../../src/domain/job.js";
import { FakeExporter } from "../fake-exporter.js";

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

export const chatRow = (line: number): CanonicalRow => ({
  line,
  messages: [
    { role: "user", content: `question ${line}` },
    { role: "assistant", content: "answer" },
  ],
});
export const classRow = (line: number): CanonicalRow => ({
  line,
  text: `text ${line}`,
  label: line % 2 === 0 ? "ham" : "spam",
});

export const preferenceRow = (line: number): CanonicalRow => ({
  line,
  messages: [{ role: "user", content: `question ${line}` }],
  preferred: [{ role: "assistant", content: "answer" }],
  non_preferred: [{ role: "assistant", content: "no" }],
});

export interface Setting {
  rows?: CanonicalRow[];
  kind?: DataReport["kind"];
  run?: Partial<Run>;
  file?: Partial<FileRecord>;
  memoryBytes?: number;
  /** Of a product of matrices, in operations a second. */
  product?: number;
  /** Why no base can be kept in 4 bits. */
  fourBitsLack?: string;
  /** Runs that succeeded before, the newest first. */
  succeeded?: Run[];
  validationRows?: CanonicalRow[];
  /** The project's tuned models. */
  models?: ModelRecord[];
}

function reportOf(rows: CanonicalRow[], kind: DataReport["kind"]): DataReport {
  const labels: Record<string, number> = {};
  for (const row of rows) if ("label" in row) labels[row.label] = (labels[row.label] ?? 0) + 1;
  const counted = { numRows: rows.length, numUsable: rows.length, numFaults: 0, faults: [], notices: [] };
  return {
    format: "jsonl",
    kind,
    ...counted,
    labels: kind === "classification" ? labels : null,
    rowsSha256: "0".repeat(64),
  };
}

const fileOf = (id: string, report: DataReport): FileRecord => ({
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
});

const newRun: Run = {
  id: "ftjob-1",
  projectId: "p",
  createdAt: 0,
  status: "validating_files",
  wanted: null,
  model: "smol",
  baseModel: "smol",
  family: "decoder",
  trainingFile: "file-t",
  validationFile: null,
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
};

export async function world({
  rows = Array.from({ length: 100 }, (_, index) => chatRow(index + 1)),
  kind = "chat",
  validationRows,
  ...setting
}: Setting = {}) {
  const folder = mkdtempSync(join(tmpdir(), "fettle-validate-"));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  const blobs = localBlobs(folder);
  const files = new Map<string, FileRecord>();
  const addFile = async (id: string, content: CanonicalRow[], change: Partial<FileRecord> = {}): Promise<void> => {
    await blobs.put(`files/${id}/rows.jsonl`, inPieces(content));
    files.set(id, { ...fileOf(id, reportOf(content, kind)), ...change });
  };
  await addFile("file-t", rows, setting.file);
  if (validationRows !== undefined) await addFile("file-v", validationRows);
  let run: Run = { ...newRun, validationFile: validationRows === undefined ? null : "file-v", ...setting.run };
  const events: NewRunEvent[] = [];
  const store = {
    files: { get: async (_project: string, id: string) => files.get(id) ?? null },
    models: {
      get: async (_project: string, name: string) => setting.models?.find((one) => one.name === name) ?? null,
      checkpoint: async () => null,
      list: async () => setting.models ?? [],
    },
    runs: {
      succeeded: async (_project: string, limit: number) => (setting.succeeded ?? []).slice(0, limit),
      update: async (_id: string, change: (current: Run) => { run: Run; events: NewRunEvent[] } | null) => {
        const next = change(run);
        if (next === null) return null;
        run = next.run;
        events.push(...next.events);
        return run;
      },
    },
  } as unknown as Store;
  let fourBitsAsked = 0;
  const deps = {
    store,
    blobs,
    exporter: new FakeExporter(),
    catalogue: {
      list: async () => models,
      find: async (name) => models.find((one) => one.name === name) ?? null,
      prepare: async () => model({}),
    },
    clock: { now: () => 1000, every: () => () => undefined, sleep: async () => undefined },
    ids: { make: (prefix) => `${prefix}${events.length}`, bytes: (n) => new Uint8Array(n) },
    machine: {
      memoryBytes: setting.memoryBytes ?? 16e9,
      cores: 2,
      name: "two cores",
      product: () => setting.product ?? null,
      fourBitsLack: async () => {
        fourBitsAsked += 1;
        return setting.fourBitsLack ?? null;
      },
    },
  } satisfies ValidateRunDeps & { exporter: FakeExporter };
  const text = async (key: string): Promise<string> => {
    const parts: Uint8Array[] = [];
    for await (const part of (await blobs.get(key)) ?? []) parts.push(part);
    return Buffer.concat(parts).toString();
  };
  return {
    validate: () => validateRun(deps, run),
    run: () => run,
    events,
    deps,
    text,
    fourBitsAsked: () => fourBitsAsked,
  };
}

/** In pieces that cut lines apart. */
async function* inPieces(rows: CanonicalRow[]): AsyncIterable<Uint8Array> {
  const bytes = Buffer.from(rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
  for (let at = 0; at < bytes.length; at += 100) yield bytes.subarray(at, at + 100);
}
