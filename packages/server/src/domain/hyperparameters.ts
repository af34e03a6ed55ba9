/** Values for whatever the user left open, each with its reason. Pure. */
import { type Family, type Hyperparameters, hyperparametersSchema, type Method, type Task } from "@fettle/contract";
import { type AdapterShape, isShapeName, shapeConflict, shapeReason } from "./adapter-shape.js";
import type { RunRequest } from "./job.js";
import { hasRank, readsVirtualTokens } from "./methods.js";
import { type Decided, decided, refused } from "./refusal.js";

export interface Situation {
  family: Family;
  task: Task;
  method: Method;
  numParameters: number;
  contextLength: number;
  /** Of an encoder-decoder: of its decoder. */
  numLayers: number;
  /** Rows to train on, without those held out. */
  numRows: number;
  /** Tokens of the longest row, approximately. */
  longestRow: number;
  hasValidation: boolean;
  /** The adapter that is gone on from: its shape is kept. */
  adapter: AdapterShape | null;
  /** Rows of each class. */
  labels: Readonly<Record<string, number>>;
  /** Of the rows to train on; null when they have none. */
  scores: { mean: number; std: number } | null;
  /** Whether a teacher's answers are learnt too. */
  taught: boolean;
  /** The most rows at once that fit in memory, for rows of `maxLength` tokens. */
  rowsThatFit: (maxLength: number) => number;
}

/** Of runs that were resolved before these were there: what they meant then. A new hyperparameter needs its line. */
export const meantBefore: Pick<Hyperparameters, "sampling" | "distill_weight" | "distill_temperature"> = {
  sampling: "shuffled",
  distill_weight: 0.5,
  distill_temperature: 2,
};

export interface Choice<Name extends string = string> {
  name: Name;
  value: unknown;
  reason: string;
}

export interface Resolved {
  values: Hyperparameters;
  /** Only what was left open. */
  choices: Choice[];
}

type Rule = (situation: Situation, soFar: Partial<Hyperparameters>) => { value: unknown; reason: string };

/** The reason of a value that the method does not look at. */
export const notUsed = "not used by this method";
const rootReason = "twice the root of lora_r: the change is scaled as in lora";

/** In this order: a later rule may look at earlier values. */
const rules: Record<keyof Hyperparameters, Rule> = {
  num_train_epochs: epochsRule,
  max_length: maxLengthRule,
  per_device_train_batch_size: batchRule,
  gradient_accumulation_steps: accumulationRule,
  learning_rate: learningRateRule,
  lr_scheduler_type: ({ family, method }) =>
    family === "decoder" && method !== "head"
      ? { value: "cosine", reason: "usual for decoders" }
      : { value: "linear", reason: "usual for encoders, encoder-decoders and heads" },
  warmup_ratio: ({ family }) =>
    family === "decoder"
      ? { value: 0.05, reason: "a short warm-up suffices for a decoder" }
      : { value: 0.1, reason: "a longer warm-up keeps the first steps of a new output layer small" },
  weight_decay: ({ method }) =>
    method === "full"
      ? { value: 0.01, reason: "usual when all weights are trained" }
      : { value: 0, reason: "few weights are trained" },
  max_grad_norm: () => ({ value: 1, reason: "usual" }),
  label_smoothing_factor: () => ({ value: 0, reason: "off unless asked for" }),
  dropout: ({ task }) =>
    task === "preference"
      ? { value: 0, reason: "the model is measured against itself before the run, which dropout would blur" }
      : { value: null, reason: "the model's own" },
  lora_r: ({ method }) => ({
    value: 16,
    reason: hasRank(method) ? "enough for most tasks" : notUsed,
  }),
  lora_alpha: ({ method }, { lora_r = 16 }) => ({
    value: method === "rslora" ? 2 * Math.round(Math.sqrt(lora_r)) : Math.min(2 * lora_r, 2048),
    reason: method === "rslora" ? rootReason : hasRank(method) ? "twice lora_r" : notUsed,
  }),
  lora_dropout: ({ task, method, numRows }) => ({
    value: hasRank(method) && numRows < 2000 && task !== "preference" ? 0.05 : 0,
    reason: !hasRank(method) ? notUsed : task === "preference" ? "as dropout" : `${numRows} rows`,
  }),
  target_modules: ({ method }) => ({
    value: "all-linear",
    reason: hasRank(method) ? "adapting every linear layer learns most per parameter" : notUsed,
  }),
  trainable_layers: ({ method, numLayers }) => ({
    value: Math.max(1, Math.min(2, numLayers - 1)),
    reason: method === "freeze" ? "the last layers hold most of what is particular to a task" : notUsed,
  }),
  num_virtual_tokens: ({ method }) => ({ value: 20, reason: readsVirtualTokens(method) ? "usual" : notUsed }),
  early_stopping_patience: ({ hasValidation }) =>
    hasValidation
      ? { value: 3, reason: "stops after 3 evaluations without gain" }
      : { value: 0, reason: "off: no row is held out to judge by" },
  eval_steps: () => ({ value: 0, reason: "once an epoch" }),
  sampling: ({ task }) => ({
    value: "shuffled",
    reason: task === "classification" ? "each row once an epoch" : notUsed,
  }),
  class_weights: classWeightsRule,
  target_mean: ({ task, scores }) =>
    task === "regression" && scores !== null
      ? { value: scores.mean, reason: "the mean of the scores, so that what is learnt lies around 0" }
      : { value: 0, reason: notUsed },
  target_std: ({ task, scores }) =>
    task === "regression" && scores !== null
      ? { value: scores.std, reason: "the scores' standard deviation, so that one learning rate suits all scales" }
      : { value: 1, reason: notUsed },
  beta: ({ task }) => ({
    value: 0.1,
    reason: task === "preference" ? "usual; higher stays nearer to the starting model" : notUsed,
  }),
  distill_weight: ({ taught }) => ({
    value: 0.5,
    reason: taught ? "labels and teacher count the same" : notUsed,
  }),
  distill_temperature: ({ taught, task }) => ({
    value: 2,
    reason: taught && task !== "regression" ? "usual; shows what the teacher thinks of the other labels" : notUsed,
  }),
};

/** Rows of the largest class for one of the smallest, from which on classes are weighed. */
const severeImbalance = 10;

function classWeightsRule(
  { task, labels, numRows }: Situation,
  { sampling }: Partial<Hyperparameters>,
): { value: string; reason: string } {
  if (task === "multilabel_classification") return labelWeights(labels, numRows);
  if (task !== "classification") return { value: "none", reason: notUsed };
  if (sampling === "balanced") return { value: "none", reason: "every class is drawn as often already" };
  const counts = Object.entries(labels).filter(([, count]) => count > 0);
  const [first = ["", 1] as const] = counts;
  const most = counts.reduce((a, b) => (b[1] > a[1] ? b : a), first);
  const least = counts.reduce((a, b) => (b[1] < a[1] ? b : a), first);
  const told = `"${most[0]}" has ${most[1]} rows, "${least[0]}" ${least[1]}`;
  return most[1] > severeImbalance * least[1]
    ? { value: "balanced", reason: `${told}: without weights the rare class would hardly be learnt` }
    : { value: "none", reason: `${told}: at most ${severeImbalance} to 1 apart` };
}

/** Never weighed unasked: a label may be as rare as its file says, and its probability is then right. */
function labelWeights(labels: Situation["labels"], numRows: number): { value: string; reason: string } {
  const reason = "weights move a label's probability away from how often it is there";
  const [rarest = ["", numRows] as const] = Object.entries(labels)
    .filter(([, count]) => count > 0)
    .sort(([, a], [, b]) => a - b);
  const [name, count] = rarest;
  const rare = numRows - count > severeImbalance * count;
  const told = `"${name}" is on ${count} of ${numRows} rows: "balanced" would find it more often, but ${reason}`;
  return { value: "none", reason: rare ? told : reason };
}

/** Values given are kept when they are within bounds; `learning_rate_multiplier` scales the learning rate, given or chosen. */
export function resolveHyperparameters(given: RunRequest["hyperparameters"], situation: Situation): Decided<Resolved> {
  const { learning_rate_multiplier: multiplier, ...own } = given;
  const { adapter } = situation;
  const conflict = adapter && shapeConflict(adapter, given);
  if (conflict !== null) return refused("value_out_of_range", `hyperparameters.${conflict.name}`, conflict.message);
  const values: Record<string, unknown> = {};
  const choices: Choice[] = [];
  for (const [name, rule] of Object.entries(rules) as [keyof Hyperparameters, Rule][]) {
    const asked = own[name];
    if (asked !== undefined) {
      const outside = outOfRange(name, asked);
      if (outside !== null) return refused("value_out_of_range", `hyperparameters.${name}`, outside);
      values[name] = asked;
    } else {
      const { value, reason } =
        adapter !== null && isShapeName(name)
          ? { value: adapter[name], reason: shapeReason(adapter) }
          : rule(situation, values as Partial<Hyperparameters>);
      values[name] = value;
      choices.push({ name, value, reason });
    }
  }
  const vain = balanceConflict(values, situation.task) ?? teachingConflict(own, situation);
  if (vain !== null) return refused("value_out_of_range", ...vain);
  if (multiplier !== undefined) {
    const scaled = (values["learning_rate"] as number) * multiplier;
    if (!(scaled <= 0.1) || scaled <= 0) {
      const message = `learning_rate_multiplier ${multiplier} makes the learning rate ${Number(scaled.toPrecision(3))}: expected at most 0.1. ${typicalLearningRate}`;
      return refused("value_out_of_range", "hyperparameters.learning_rate_multiplier", message);
    }
    values["learning_rate"] = scaled;
    choices.push({ name: "learning_rate", value: scaled, reason: `times learning_rate_multiplier ${multiplier}` });
  }
  if ((values["max_length"] as number) > situation.contextLength) {
    const message = `max_length is ${String(values["max_length"])}, but the model reads at most ${situation.contextLength} tokens. Use at most ${situation.contextLength}, or leave it out.`;
    return refused("value_out_of_range", "hyperparameters.max_length", message);
  }
  const layers = values["trainable_layers"] as number;
  if (situation.method === "freeze" && layers >= situation.numLayers) {
    const message = `trainable_layers is ${layers}, but the model has ${situation.numLayers} layers: none would stay frozen. Use fewer, or the method "full".`;
    return refused("value_out_of_range", "hyperparameters.trainable_layers", message);
  }
  return decided({ values: hyperparametersSchema.parse(values), choices });
}

/** Where it is in a request, and why not. */
function balanceConflict(values: Record<string, unknown>, task: Task): [param: string, message: string] | null {
  const [weighed, drawn] = ["class_weights", "sampling"].map((name) => values[name] === "balanced");
  if (weighed && task !== "classification" && task !== "multilabel_classification")
    return [
      "hyperparameters.class_weights",
      `class_weights is "balanced", but the task "${task}" has no classes: expected "none". Leave it out.`,
    ];
  if (drawn && task !== "classification")
    return [
      "hyperparameters.sampling",
      `sampling is "balanced", but the rows of the task "${task}" are not of one class each: expected "shuffled". ${
        task === "multilabel_classification" ? 'Use class_weights "balanced".' : "Leave it out."
      }`,
    ];
  if (weighed && drawn)
    return [
      "hyperparameters.class_weights",
      'class_weights and sampling are both "balanced": a rare class would count twice as much as it should. Leave one out.',
    ];
  return null;
}

function teachingConflict(
  given: Partial<Hyperparameters>,
  { taught, task }: Situation,
): [param: string, message: string] | null {
  const name = (["distill_weight", "distill_temperature"] as const).find((one) => given[one] !== undefined);
  if (name !== undefined && !taught)
    return [
      `hyperparameters.${name}`,
      `${name} is ${given[name]}, but the run has no teacher: expected the name of one in teacher. Name it, or leave ${name} out.`,
    ];
  if (given.distill_temperature !== undefined && task === "regression")
    return [
      "hyperparameters.distill_temperature",
      `distill_temperature is ${given.distill_temperature}, but a teacher of the task "regression" answers with numbers, which have none. Leave it out.`,
    ];
  return null;
}

const typicalLearningRate = "Typical: 0.0002 for lora, 0.00002 to 0.00005 for full, 0.001 for head.";

const typical: Partial<Record<keyof Hyperparameters, string>> = {
  learning_rate: typicalLearningRate,
  num_train_epochs: "Typical: 1 to 5.",
  per_device_train_batch_size: "Typical: 4 to 32.",
  lora_r: "Typical: 8 to 64.",
  trainable_layers: "Typical: 1 to 4.",
  num_virtual_tokens: "Typical: 10 to 100.",
  warmup_ratio: "Typical: 0.03 to 0.1.",
  label_smoothing_factor: "Typical: 0 or 0.1.",
  beta: "Typical: 0.1 to 0.5.",
  distill_weight: "Typical: 0.3 to 0.9.",
  distill_temperature: "Typical: 1 to 5.",
};

/** `learning_rate is 2: expected a number above 0, at most 0.1. Typical: …`; null when the value is allowed. */
export function outOfRange(name: keyof Hyperparameters, value: unknown): string | null {
  if (hyperparametersSchema.shape[name].safeParse(value).success) return null;
  return `${name} is ${JSON.stringify(value)}: expected ${bounds[name]}. ${adviceFor(name)}`;
}

const adviceFor = (name: keyof Hyperparameters): string => typical[name] ?? "Leave it out to have it chosen.";

/** OpenAI's names for ours. */
const aliases = new Map<string, keyof Hyperparameters>([
  ["n_epochs", "num_train_epochs"],
  ["batch_size", "per_device_train_batch_size"],
]);

/** What a field of a request's hyperparameters may be, and what is usual; null when none has this name. */
export function allowedValues(field: string): { expected: string; advice: string } | null {
  if (field === "learning_rate_multiplier")
    return { expected: "a number above 0, at most 100", advice: "Typical: 0.5 to 2; it scales the learning rate." };
  const name = aliases.get(field) ?? field;
  if (!isHyperparameter(name)) return null;
  return { expected: bounds[name], advice: adviceFor(name) };
}

const isHyperparameter = (name: string): name is keyof Hyperparameters => Object.hasOwn(bounds, name);

const bounds: Record<keyof Hyperparameters, string> = {
  num_train_epochs: "a whole number from 1 to 50",
  per_device_train_batch_size: "a whole number from 1 to 256",
  gradient_accumulation_steps: "a whole number from 1 to 256",
  learning_rate: "a number above 0, at most 0.1",
  lr_scheduler_type: '"linear", "cosine" or "constant"',
  warmup_ratio: "a number from 0 to 0.5",
  weight_decay: "a number from 0 to 1",
  max_grad_norm: "a number above 0, at most 100",
  label_smoothing_factor: "a number from 0 to 0.5",
  dropout: "a number from 0 to 0.9, or null for the model's own",
  max_length: "a whole number from 8 to 131072",
  lora_r: "a whole number from 1 to 512",
  lora_alpha: "a number above 0, at most 2048",
  lora_dropout: "a number from 0 to 0.9",
  target_modules: '"all-linear" or a list of 1 to 64 module names',
  trainable_layers: "a whole number from 1 to 1000",
  num_virtual_tokens: "a whole number from 1 to 1000",
  early_stopping_patience: "a whole number from 0 to 100",
  eval_steps: "a whole number from 0 to 100000",
  sampling: '"shuffled" or "balanced"',
  class_weights: '"none" or "balanced"',
  target_mean: "a number from -1e30 to 1e30",
  target_std: "a number above 0, at most 1e30",
  beta: "a number above 0, at most 2",
  distill_weight: "a number from 0 to 1",
  distill_temperature: "a number from 0.1 to 100",
};

/** Usual epochs, rows to be seen at least, epochs at most. A new output layer begins with nothing. */
const newOutput: [number, number, number] = [3, 600, 10];
const epochsByTask: Partial<Record<Task, [number, number, number]>> = {
  classification: newOutput,
  multilabel_classification: newOutput,
  regression: newOutput,
  ranking: newOutput,
  token_classification: newOutput,
  question_answering: newOutput,
  preference: [2, 100, 10],
  pretraining: [1, 100, 10],
};

/**
 * OpenAI's published rule (cookbook, chat_finetuning_data_prep): 3 epochs, more until 100 rows are seen, fewer beyond
 * 25,000 rows seen. A new output layer starts from nothing, so heads and classifiers see rows more often.
 */
function epochsRule({ task, method, numRows }: Situation): { value: number; reason: string } {
  const [usual, least, most] = method === "head" ? [10, 4000, 25] : (epochsByTask[task] ?? [3, 100, 25]);
  const rows = Math.max(1, numRows);
  if (usual * rows < least) {
    const value = Math.min(most, Math.max(usual, Math.floor(least / rows)));
    return { value, reason: `${rows} rows are few: ${value} epochs show about ${value * rows} rows` };
  }
  if (usual * rows > 25_000) {
    const value = Math.max(1, Math.floor(25_000 / rows));
    return {
      value,
      reason:
        value === usual
          ? "usual"
          : `${rows} rows are many: ${value} ${value === 1 ? "epoch shows" : "epochs show"} ${value * rows} of them`,
    };
  }
  return { value: usual, reason: `usual for ${rows} rows` };
}

const lengthCaps: Record<Family, number> = { decoder: 4096, encoder: 512, seq2seq: 1024 };

function maxLengthRule({ family, task, contextLength, longestRow }: Situation): { value: number; reason: string } {
  const cap = Math.min(contextLength, lengthCaps[family]);
  if (task === "pretraining")
    return {
      value: Math.min(cap, 1024),
      reason: "short texts are put together up to this many tokens, longer ones cut into windows of them",
    };
  // A third more than estimated: tokenizers differ, and room that is not needed costs nothing.
  const needed = Math.max(128, Math.ceil((longestRow * 1.33) / 64) * 64);
  if (needed <= cap) return { value: needed, reason: `the longest row has about ${longestRow} tokens` };
  return {
    value: Math.max(8, cap),
    reason: `the longest row has about ${longestRow} tokens, but ${contextLength <= cap ? "the model reads" : "this family is trained with"} at most ${cap}; what is cut is counted`,
  };
}

/** Rows per optimiser step: a power of two near a 64th of the rows, within what suits the family. */
function rowsPerStep({ family, task, method, numRows }: Situation): number {
  // The rows of a step are each other's wrong answers: more of them teach more.
  const [least, most] = method === "head" || task === "embedding" ? [16, 64] : family === "decoder" ? [4, 16] : [8, 32];
  const wanted = 2 ** Math.round(Math.log2(Math.max(1, numRows / 64)));
  return Math.min(most, Math.max(least, wanted));
}

function batchRule(
  situation: Situation,
  { max_length = 512 }: Partial<Hyperparameters>,
): { value: number; reason: string } {
  const wanted = rowsPerStep(situation);
  const longest = situation.task === "pretraining" ? max_length : Math.max(128, situation.longestRow);
  const fit = situation.rowsThatFit(Math.min(max_length, longest));
  if (fit >= wanted) return { value: wanted, reason: `${situation.numRows} rows; a step of ${wanted} fits in memory` };
  const value = 2 ** Math.floor(Math.log2(Math.max(1, fit)));
  return { value, reason: `${value} ${value === 1 ? "row fits" : "rows fit"} in memory at once` };
}

function accumulationRule(
  situation: Situation,
  { per_device_train_batch_size = 1 }: Partial<Hyperparameters>,
): { value: number; reason: string } {
  const wanted = rowsPerStep(situation);
  const value = Math.max(1, Math.round(wanted / per_device_train_batch_size));
  return { value, reason: value === 1 ? "not needed" : `makes steps of ${value * per_device_train_batch_size} rows` };
}

function learningRateRule({ family, task, method, numParameters }: Situation): { value: number; reason: string } {
  const small = numParameters < 500e6;
  const size = small ? "below" : "from";
  const of = (value: number): { value: number; reason: string } => ({
    value,
    reason: `usual for ${method} on ${{ decoder: "a decoder", encoder: "an encoder", seq2seq: "an encoder-decoder" }[family]} ${size} 500 million parameters`,
  });
  if (method === "head") return { value: 1e-3, reason: "usual for a head on a frozen model" };
  if (readsVirtualTokens(method)) return { value: 1e-2, reason: "usual for virtual tokens, which are few" };
  if (method === "ia3") return { value: 5e-3, reason: "usual for ia3: factors begin as ones, and few are trained" };
  if (task === "preference")
    return {
      value: hasRank(method) ? (small ? 1e-4 : 5e-5) : small ? 5e-6 : 1e-6,
      reason: `usual for preferences: a fifth of what answers are learnt with, or less`,
    };
  if (family === "seq2seq") return of(hasRank(method) ? 1e-3 : small ? 3e-4 : 1e-4);
  if (hasRank(method)) return of(small ? 5e-4 : 2e-4);
  return of(small ? 5e-5 : 2e-5);
}
