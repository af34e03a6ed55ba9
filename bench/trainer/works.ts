/** What is compared: one model, one task, one peer each, with the flags the peer's documentation offers for speed. */
import type { Family, Hyperparameters, Method, Task } from "@fettle/contract";

export type Flags = Readonly<Record<string, string | number | boolean>>;

interface Lengths {
  mean: number;
  spread: number;
  least: number;
  most: number;
}

export interface Work {
  readonly name: string;
  /** What `--only` and the row's `work` say: several works may differ in their rows alone. */
  readonly kind: string;
  readonly task: Task;
  readonly method: Method;
  readonly family: Family;
  readonly model: string;
  /** Layers of the model (of each stack), where not all that it has: more are drawn at random. */
  readonly numLayers?: number;
  readonly peer: string;
  /** Tokens of a row: log-normal around `mean`, cut to `least..most`. */
  readonly lengths: Lengths;
  /** Of the text to be written, or of the one that belongs to it: for pairs of texts. */
  readonly targetLengths: Lengths | null;
  readonly labels: readonly string[] | null;
  readonly rowsPerStep: number;
  /** Of one epoch. */
  readonly defaultSteps: number;
  /** The rate counts from the end of the first step, or of the first epoch. */
  readonly ratedFrom: "step" | "epoch";
  /** Whether our trainer puts rows of like length into one step for this kind of model. */
  readonly byLength: boolean;
  /** Weights that a token meets, for the roofline: products of 2 x this many operations. */
  readonly productWeights: number;
  /** Products per token and weight: forward 1, gradient of inputs 1, gradient of weights 1. 0: no roofline. */
  readonly passes: number;
  readonly hyperparameters: Partial<Hyperparameters>;
  readonly defaults: Flags;
  /** Each is tried for a run; the fastest is the peer's best. */
  readonly candidates: readonly Flags[];
}

const base: Hyperparameters = {
  num_train_epochs: 1,
  per_device_train_batch_size: 8,
  gradient_accumulation_steps: 1,
  learning_rate: 2e-4,
  // A warm-up is counted differently by everybody: constant is the same everywhere.
  lr_scheduler_type: "constant",
  warmup_ratio: 0,
  weight_decay: 0,
  max_grad_norm: 1,
  label_smoothing_factor: 0,
  dropout: 0,
  max_length: 512,
  lora_r: 16,
  lora_alpha: 32,
  lora_dropout: 0,
  target_modules: "all-linear",
  trainable_layers: 1,
  num_virtual_tokens: 20,
  early_stopping_patience: 0,
  eval_steps: 0,
  sampling: "shuffled",
  class_weights: "none",
  target_mean: 0,
  target_std: 1,
  beta: 0.1,
  distill_weight: 0.5,
  distill_temperature: 2,
};

export const hyperparametersOf = (work: Work): Hyperparameters => ({
  ...base,
  ...work.hyperparameters,
  per_device_train_batch_size: work.rowsPerStep,
});

/** Every combination of the values given for each flag. */
function combinations(choices: Record<string, (string | boolean)[]>): Flags[] {
  return Object.entries(choices).reduce<Flags[]>(
    (all, [flag, values]) => all.flatMap((flags) => values.map((value) => ({ ...flags, [flag]: value }))),
    [{}],
  );
}

const order = ["sequential", "group_by_length"];
const decoderChoices = { bf16: [true, false], loss_type: ["nll", "chunked_nll"], train_sampling_strategy: order };

const decoder = {
  task: "chat",
  family: "decoder",
  model: "smollm2-135m-instruct",
  peer: "trl 1.13.0 SFTTrainer + peft 0.21.0",
  lengths: { mean: 130, spread: 0.8, least: 40, most: 500 },
  targetLengths: null,
  labels: null,
  rowsPerStep: 8,
  defaultSteps: 12,
  ratedFrom: "step",
  byLength: false,
  productWeights: 134_515_008,
  // Our batches in our order, so that the losses of each step can be compared; all else as TRL comes.
  defaults: { train_sampling_strategy: "sequential" },
  candidates: combinations(decoderChoices).map((flags) => ({ ...flags, gradient_checkpointing: false })),
} as const;

const trainer = combinations({ bf16: [true, false], train_sampling_strategy: ["random", "group_by_length"] });

const encoder = {
  kind: "encoder",
  task: "classification",
  method: "full",
  family: "encoder",
  model: "minilm-l6-v2",
  peer: "transformers 5.18.0 Trainer",
  targetLengths: null,
  labels: ["class 0", "class 1", "class 2", "class 3"],
  rowsPerStep: 32,
  ratedFrom: "step",
  byLength: true,
  productWeights: 10_650_000,
  passes: 3,
  defaults: {},
  candidates: trainer,
} as const;
const short: Lengths = { mean: 30, spread: 0.6, least: 8, most: 64 };

export const works: readonly Work[] = [
  { ...decoder, name: "decoder-lora", kind: "decoder-lora", method: "lora", passes: 2, hyperparameters: {} },
  {
    ...decoder,
    name: "decoder-full",
    kind: "decoder-full",
    method: "full",
    passes: 3,
    hyperparameters: { learning_rate: 2e-5 },
  },
  {
    ...encoder,
    name: "encoder",
    lengths: short,
    defaultSteps: 60,
    hyperparameters: { learning_rate: 5e-5, max_length: 128 },
  },
  {
    ...encoder,
    name: "encoder-mail",
    lengths: { mean: 160, spread: 0.7, least: 20, most: 500 },
    rowsPerStep: 16,
    defaultSteps: 20,
    hyperparameters: { learning_rate: 5e-5 },
  },
  {
    ...encoder,
    name: "head",
    kind: "head",
    method: "head",
    lengths: short,
    defaultSteps: 30,
    ratedFrom: "epoch",
    passes: 0,
    hyperparameters: { learning_rate: 1e-3, max_length: 128, num_train_epochs: 4 },
  },
  {
    ...encoder,
    name: "embeddings",
    kind: "embeddings",
    task: "embedding",
    peer: "sentence-transformers 6.2.0 SentenceTransformerTrainer + MultipleNegativesRankingLoss",
    lengths: short,
    targetLengths: { mean: 100, spread: 0.6, least: 16, most: 250 },
    labels: null,
    defaultSteps: 20,
    hyperparameters: { learning_rate: 2e-5, max_length: 256 },
    // Its trainer makes batches by its own samplers: none of them looks at lengths, and the Trainer's flag is ignored.
    candidates: combinations({ bf16: [true, false] }),
  },
  {
    name: "seq2seq",
    kind: "seq2seq",
    task: "seq2seq",
    method: "full",
    family: "seq2seq",
    model: "t5-small-shape",
    peer: "transformers 5.18.0 Seq2SeqTrainer",
    lengths: { mean: 100, spread: 0.7, least: 10, most: 400 },
    targetLengths: { mean: 40, spread: 0.5, least: 5, most: 128 },
    labels: null,
    rowsPerStep: 16,
    defaultSteps: 16,
    ratedFrom: "step",
    byLength: true,
    // A source token meets the encoder and the cross keys and values (22.0 M), a target token the rest (38.5 M).
    productWeights: 26_700_000,
    passes: 3,
    hyperparameters: { learning_rate: 1e-3 },
    defaults: {},
    candidates: trainer,
  },
];
