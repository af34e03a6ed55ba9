/** Everything that is decided about a run before it is queued, from facts already gathered. Pure. */
import type { RowKind } from "@fettle/contract";
import type { AdapterShape } from "../domain/adapter-shape.js";
import { type Chosen, chooseWay, familiesFor } from "../domain/compatibility.js";
import { gigabytes, type Load, memoryBytes, operationsOf, secondsRange } from "../domain/estimate.js";
import { type Resolved, resolveHyperparameters } from "../domain/hyperparameters.js";
import type { Estimate, Run, RunAction } from "../domain/job.js";
import { type LabelSet, labelSet, type LabelTask } from "../domain/labels.js";
import { leavesAdapter } from "../domain/methods.js";
import { paceOf, type Trained } from "../domain/pace.js";
import { type Decided, decided, refused } from "../domain/refusal.js";
import { loadOf, rowsThatFit, tooLarge } from "./fit-memory.js";
import type { RowFacts } from "./held-out.js";
import type { ResolvedModel } from "./models.js";
import type { BaseModel, DataReport } from "./ports.js";
import {
  choiceNotes,
  estimateNote,
  fourBitNotes,
  type Note,
  reasonNotes,
  rowNotes,
  teacherNotes,
} from "./run-notes.js";
import type { Teacher } from "./teacher.js";

export interface RunFacts {
  run: Run;
  model: ResolvedModel;
  /** Whom it learns from. */
  teacher: Teacher | null;
  /** Null when the model is no adapter. */
  adapter: AdapterShape | null;
  facts: RowFacts;
  machine: { memoryBytes: number; cores: number; name: string; product: number | null; fourBitsLack: string | null };
  /** What ended well on this machine. */
  trained: readonly Trained[];
  /** The models of this machine: for naming one that would do. */
  known: readonly BaseModel[];
  training: DataReport | null;
  validation: DataReport | null;
}

export type Decision = Decided<{ action: Extract<RunAction, { type: "validated" }>; notes: Note[] }>;

export function decideRun(input: RunFacts): Decision {
  const rows = rowKind(input);
  if (!rows.ok) return rows;
  const way = wayFor(input, rows.value);
  if (!way.ok) return way;
  const labels = labelsFor(input, rows.value);
  if (!labels.ok) return labels;
  const untaught = input.teacher?.refusal(way.value.task, labels.value?.labels ?? null) ?? null;
  if (untaught !== null) return { ok: false, refusal: untaught };
  const resolved = hyperparametersFor(input, way.value);
  if (!resolved.ok) return resolved;
  const estimate = estimateFor(input, way.value, resolved.value);
  if (!estimate.ok) return estimate;
  const { task, method } = way.value;
  const { values: hyperparameters, choices } = resolved.value;
  return decided({
    action: {
      type: "validated",
      task,
      method,
      hyperparameters,
      labels: labels.value?.labels ?? null,
      estimate: estimate.value,
    },
    notes: [
      ...reasonNotes(way.value),
      ...fourBitNotes(method),
      ...(labels.value?.warnings ?? []).map((message) => ({ level: "warn" as const, message })),
      ...rowNotes({
        facts: input.facts,
        notices: input.training?.notices ?? [],
        hasValidationFile: input.run.validationFile !== null,
        fold: input.run.split?.fold ?? null,
      }),
      ...teacherNotes(input.teacher),
      ...choiceNotes(choices),
      estimateNote(estimate.value),
    ],
  });
}

function rowKind({ training, validation }: RunFacts): Decided<RowKind> {
  const rows = training?.kind ?? null;
  if (rows === null)
    return refused(
      "invalid_training_file",
      "training_file",
      "The training file holds no row that could be recognised. Upload it again.",
    );
  const other = validation?.kind ?? rows;
  if (other === rows) return decided(rows);
  return refused(
    "invalid_training_file",
    "validation_file",
    `The validation file holds ${other} rows, the training file ${rows} rows: expected the same kind in both.`,
  );
}

function wayFor({ run, model, machine, known }: RunFacts, rows: RowKind): Decided<Chosen> {
  const { family, numParameters } = model.base;
  const way = chooseWay({
    model: run.model,
    family,
    numParameters,
    rows,
    task: run.request.task,
    method: run.request.method,
    tunedBy: model.tuned?.method ?? null,
    tunedFor: model.tuned?.task ?? null,
    fourBitsLack: machine.fourBitsLack,
  });
  if (way.ok || way.refusal.param !== "model") return way;
  const would = known.find((candidate) => familiesFor(rows).includes(candidate.family));
  if (would === undefined) return way;
  return {
    ok: false,
    refusal: { ...way.refusal, message: `${way.refusal.message} The model "${would.name}" can use this file.` },
  };
}

function labelsFor({ model, facts, validation }: RunFacts, rows: RowKind): Decided<LabelSet | null> {
  const task = taskWithLabels[rows];
  if (task === undefined) return decided(null);
  const inherited = model.tuned?.task === task ? model.tuned.labels : null;
  return labelSet({ training: facts.labels, validation: validation?.labels ?? null, inherited, task });
}

const taskWithLabels: Partial<Record<RowKind, LabelTask>> = {
  classification: "classification",
  multilabel: "multilabel_classification",
  entities: "token_classification",
};

function hyperparametersFor(
  { run, model, teacher, adapter, facts, machine }: RunFacts,
  { task, method }: Chosen,
): Decided<Resolved> {
  const { family, numParameters, contextLength, numLayers } = model.base;
  const loraR = adapter?.lora_r ?? run.request.hyperparameters.lora_r ?? 16;
  const trainableLayers = run.request.hyperparameters.trainable_layers ?? 2;
  const given = run.request.hyperparameters;
  return resolveHyperparameters(given, {
    family,
    task,
    method,
    numParameters,
    contextLength,
    numLayers,
    numRows: facts.numTrainRows,
    longestRow: facts.longestRow,
    hasValidation: facts.numValidationRows > 0,
    // Folded into its base by other methods, it has no shape left to keep.
    adapter: leavesAdapter(method) ? adapter : null,
    labels: facts.labels,
    scores: facts.scores ?? null,
    taught: teacher !== null,
    rowsThatFit: (length) =>
      rowsThatFit(
        model.base,
        loadOf({ model: model.base, method, task, length, loraR, trainableLayers }),
        machine.memoryBytes,
      ),
  });
}

function estimateFor(
  { run, model, teacher, facts, machine, trained, known }: RunFacts,
  { task, method }: Chosen,
  { values }: Resolved,
): Decided<Estimate> {
  const { base } = model;
  const longest = task === "pretraining" ? values.max_length : Math.max(16, facts.longestRow);
  const length = Math.min(values.max_length, longest);
  const load = {
    ...loadOf({ model: base, method, task, length, loraR: values.lora_r, trainableLayers: values.trainable_layers }),
    batchSize: values.per_device_train_batch_size,
  };
  const needed = memoryBytes(base, load);
  if (needed > machine.memoryBytes)
    return tooLarge({ model: run.model, base, load, available: machine.memoryBytes, known });
  const answers = answersOf(teacher, { load, tokens: facts.numTrainTokens, available: machine.memoryBytes });
  if (!answers.ok) return answers;
  const work = {
    tokens: facts.numTrainTokens,
    epochs: values.num_train_epochs,
    method,
    family: base.family,
    trainableLayers: values.trainable_layers,
  };
  const pace = paceOf({ baseModel: base.name, method, cores: machine.cores, trained, product: machine.product });
  return decided({
    seconds: secondsRange(operationsOf(base, work) + answers.value.operations, pace),
    // The teacher is gone before the student comes.
    memoryBytes: Math.max(needed, answers.value.bytes),
    tokens: work.tokens * work.epochs,
    basis: pace.basis,
    machine: machine.name,
  });
}

/** A teacher reads each row once, as a frozen body does. */
function answersOf(
  teacher: Teacher | null,
  { load, tokens, available }: { load: Load; tokens: number; available: number },
): Decided<{ operations: number; bytes: number }> {
  if (teacher === null) return decided({ operations: 0, bytes: 0 });
  const { name, base } = teacher.model;
  const bytes = memoryBytes(base, { ...load, family: base.family, method: "head", generates: false });
  if (bytes <= available)
    return decided({
      operations: operationsOf(base, { tokens, epochs: 1, method: "head", family: base.family }),
      bytes,
    });
  return refused(
    "model_too_large",
    "teacher",
    `The teacher "${name}" needs about ${gigabytes(bytes)} of memory to answer; this machine has ${gigabytes(available)} for it. Choose a smaller teacher, or a machine with more memory.`,
  );
}
