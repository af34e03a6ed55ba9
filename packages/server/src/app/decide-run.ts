/** Everything that is decided about a run before it is queued, from facts already gathered. Pure. */
import type { Method, RowKind, TrainSpec } from "@fettle/contract";
import { chooseWay, familiesFor } from "../domain/compatibility.js";
import { gigabytes, type Load, memoryBytes, secondsRange } from "../domain/estimate.js";
import { resolveHyperparameters } from "../domain/hyperparameters.js";
import type { Run, RunAction } from "../domain/job.js";
import { labelSet } from "../domain/labels.js";
import { type Decided, decided, refused } from "../domain/refusal.js";
import type { RowFacts } from "./held-out.js";
import type { ResolvedModel } from "./models.js";
import type { BaseModel, DataReport } from "./ports.js";

export interface RunFacts {
  run: Run;
  model: ResolvedModel;
  facts: RowFacts;
  machine: { memoryBytes: number; cores: number };
  /** The models of this machine: for naming one that would fit. */
  known: readonly BaseModel[];
  training: DataReport | null;
  validation: DataReport | null;
}

export interface Note {
  level: "info" | "warn";
  message: string;
  data?: Record<string, unknown>;
}

export type Decision = Decided<{ action: Extract<RunAction, { type: "validated" }>; notes: Note[] }>;

export function decideRun(input: RunFacts): Decision {
  const { run, model, facts, machine } = input;
  const rows = input.training?.kind ?? null;
  if (rows === null)
    return refused(
      "invalid_training_file",
      "training_file",
      "The training file holds no row that could be recognised. Upload it again.",
    );
  const other = input.validation?.kind ?? rows;
  if (other !== rows)
    return refused(
      "invalid_training_file",
      "validation_file",
      `The validation file holds ${other} rows, the training file ${rows} rows: expected the same kind in both.`,
    );
  const way = chooseWay({
    model: run.model,
    family: model.base.family,
    numParameters: model.base.numParameters,
    rows,
    task: run.request.task,
    method: run.request.method,
    tunedBy: model.tuned?.method ?? null,
  });
  if (!way.ok) return withModelThatWould(way, { input, rows });
  const labels =
    rows === "classification"
      ? labelSet({
          training: facts.labels,
          validation: input.validation?.labels ?? null,
          inherited: inheritedLabels(input),
        })
      : null;
  if (labels?.ok === false) return labels;
  const { task, method } = way.value;
  const resolved = resolveHyperparameters(run.request.hyperparameters, {
    family: model.base.family,
    task,
    method,
    numParameters: model.base.numParameters,
    contextLength: model.base.contextLength,
    numRows: facts.numTrainRows,
    longestRow: facts.longestRow,
    hasValidation: facts.numValidationRows > 0,
    rowsThatFit: (length) =>
      rowsThatFit(
        model.base,
        loadOf({ model: model.base, method, task, length, loraR: run.request.hyperparameters.lora_r ?? 16 }),
        machine.memoryBytes,
      ),
  });
  if (!resolved.ok) return resolved;
  const { values, choices } = resolved.value;
  const length = Math.min(values.max_length, Math.max(16, facts.longestRow));
  const load = {
    ...loadOf({ model: model.base, method, task, length, loraR: values.lora_r }),
    batchSize: values.per_device_train_batch_size,
  };
  const needed = memoryBytes(model.base, load);
  if (needed > machine.memoryBytes) return tooLarge(input, { load, needed, method });
  const tokens = Math.round(facts.numTrainTokens) * values.num_train_epochs;
  const seconds = secondsRange(model.base, {
    tokens: facts.numTrainTokens,
    epochs: values.num_train_epochs,
    method,
    family: model.base.family,
    cores: machine.cores,
  });
  const estimate = { seconds, memoryBytes: needed, tokens };
  const action = {
    type: "validated" as const,
    task,
    method,
    hyperparameters: values,
    labels: labels === null ? null : labels.value.labels,
    estimate,
  };
  const notes: Note[] = [
    ...reasonNotes(way.value),
    ...(labels?.value.warnings ?? []).map((message) => ({ level: "warn" as const, message })),
    ...rowNotes(input),
    ...choiceNotes(choices),
    {
      level: "info",
      message: `Estimate: about ${tokens} tokens, ${duration(seconds[0])} to ${duration(seconds[1])}, ${gigabytes(needed)} of memory.`,
      data: { tokens, seconds, memory_bytes: needed },
    },
  ];
  return decided({ action, notes });
}

function inheritedLabels({ model }: RunFacts): string[] | null {
  return model.tuned?.task === "classification" ? model.tuned.labels : null;
}

interface LoadInput {
  model: BaseModel;
  method: Method;
  task: TrainSpec["task"];
  length: number;
  loraR: number;
}
const loadOf = ({ model, method, task, length, loraR }: LoadInput): Load => ({
  family: model.family,
  method,
  batchSize: 1,
  length,
  loraR,
  generates: task !== "classification",
});

/** The chosen batch leaves a third of the memory free: an estimate is no promise. */
function rowsThatFit(model: BaseModel, load: Load, available: number): number {
  const one = memoryBytes(model, load);
  const perRow = Math.max(1, memoryBytes(model, { ...load, batchSize: 2 }) - one);
  return Math.max(1, 1 + Math.floor((available * 0.67 - one) / perRow));
}

function withModelThatWould(
  refusal: Extract<Decision, { ok: false }>,
  { input, rows }: { input: RunFacts; rows: RowKind },
): Decision {
  if (refusal.refusal.param !== "model") return refusal;
  const would = input.known.find((model) => familiesFor(rows).includes(model.family));
  if (would === undefined) return refusal;
  return {
    ok: false,
    refusal: { ...refusal.refusal, message: `${refusal.refusal.message} The model "${would.name}" can use this file.` },
  };
}

/** Names what would fit: fewer rows at once, another method, or the largest model of the family that does. */
function tooLarge(
  { model, machine, known, run }: RunFacts,
  { load, needed, method }: { load: Load; needed: number; method: Method },
): Decision {
  const fits = (size: BaseModel, change: Partial<Load>): number | null => {
    const bytes = memoryBytes(size, { ...load, ...change });
    return bytes <= machine.memoryBytes ? bytes : null;
  };
  const what = `Training ${run.model} with the method "${method}" needs about ${gigabytes(needed)} of memory; this machine has ${gigabytes(machine.memoryBytes)} for it.`;
  const oneRow = load.batchSize > 1 ? fits(model.base, { batchSize: 1 }) : null;
  if (oneRow !== null)
    return refused(
      "model_too_large",
      "hyperparameters.per_device_train_batch_size",
      `${what} per_device_train_batch_size 1 (now ${load.batchSize}) would fit with about ${gigabytes(oneRow)}.`,
    );
  const adapter = method === "full" ? fits(model.base, { method: "lora", batchSize: 1 }) : null;
  if (adapter !== null)
    return refused(
      "model_too_large",
      "method",
      `${what} The method "lora" would fit with about ${gigabytes(adapter)}.`,
    );
  const shorter = load.length > 256 ? fits(model.base, { batchSize: 1, length: 256 }) : null;
  if (shorter !== null)
    return refused(
      "model_too_large",
      "hyperparameters.max_length",
      `${what} max_length 256 (the longest row has about ${load.length} tokens) would fit with about ${gigabytes(shorter)}.`,
    );
  const other = [...known]
    .filter(
      (candidate) =>
        candidate.family === model.base.family &&
        candidate.name !== model.base.name &&
        fits(candidate, { batchSize: 1 }) !== null,
    )
    .sort((a, b) => b.numParameters - a.numParameters)[0];
  const fix =
    other === undefined
      ? "No model of this kind known here would fit: use a machine with more memory."
      : `The model "${other.name}" would fit with about ${gigabytes(memoryBytes(other, { ...load, batchSize: 1 }))}.`;
  return refused("model_too_large", "model", `${what} ${fix}`);
}

function reasonNotes({
  task,
  method,
  taskReason,
  methodReason,
}: {
  task: string;
  method: string;
  taskReason: string | null;
  methodReason: string | null;
}): Note[] {
  const notes: Note[] = [];
  if (taskReason !== null) notes.push({ level: "info", message: `Task chosen: ${task}, because ${taskReason}.` });
  if (methodReason !== null)
    notes.push({ level: "info", message: `Method chosen: ${method}, because ${methodReason}.` });
  return notes;
}

function rowNotes({ run, facts, training }: RunFacts): Note[] {
  const notes: Note[] = (training?.notices ?? []).map((message) => ({
    level: "info",
    message: `Training file: ${message}`,
  }));
  if (run.validationFile === null) {
    notes.push(
      facts.numValidationRows === 0
        ? {
            level: "warn",
            message: `No row is held out for validation: ${facts.numTrainRows} rows are too few to spare some. The last checkpoint is kept, not the best. Give a validation file to change that.`,
          }
        : {
            level: "info",
            message: `${facts.numValidationRows} rows are held out for validation, ${facts.numTrainRows} are trained on; rows of one group or with the same question stay together.`,
          },
    );
  } else if (facts.numLeaked > 0) {
    notes.push({
      level: "warn",
      message: `${facts.numLeaked} of ${facts.numValidationRows} validation rows ask what a training row asks too: validation will look better than it is.`,
    });
  }
  return notes;
}

function choiceNotes(choices: readonly { name: string; value: unknown; reason: string }[]): Note[] {
  const told = choices.filter(({ reason }) => reason !== "not used by this method");
  const text = (value: unknown): string => (value === null ? "the model's own" : String(value));
  return told.length === 0
    ? []
    : told.map(({ name, value, reason }) => ({
        level: "info",
        message: `${name} chosen: ${text(value)} (${reason}).`,
        data: { name, value, reason },
      }));
}

function duration(seconds: number): string {
  if (seconds < 120) return `${seconds} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
