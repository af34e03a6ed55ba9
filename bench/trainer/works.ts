/** What is compared: one model, one task, one peer each, with the flags the peer's documentation offers for speed. */
import type { Family, Hyperparameters, Method, Task } from "@fettle/contract";

export type Flags = Readonly<Record<string, string | number | boolean>>;

export interface Work {
  readonly name: string;
  readonly task: Task;
  readonly method: Method;
  readonly family: Family;
  readonly model: string;
  readonly peer: string;
  /** Tokens of a row: log-normal around `mean`, cut to `least..most`. */
  readonly lengths: { mean: number; spread: number; least: number; most: number };
  readonly labels: string[] | null;
  readonly rowsPerStep: number;
  readonly defaultSteps: number;
  /** Whether our trainer puts rows of like length into one step for this kind of model. */
  readonly byLength: boolean;
  /** Weights that a token meets, for the roofline: products of 2 x this many operations. */
  readonly productWeights: number;
  /** Products per token and weight: forward 1, gradient of inputs 1, gradient of weights 1. */
  readonly passes: number;
  readonly hyperparameters: Partial<Hyperparameters>;
  readonly defaults: Flags;
  /** Each is tried for a few steps; the fastest is the peer's best. `sequential` reads our own batches in our order. */
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
  early_stopping_patience: 0,
  eval_steps: 0,
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
  labels: null,
  rowsPerStep: 8,
  defaultSteps: 12,
  byLength: false,
  productWeights: 134_515_008,
  // Our batches in our order, so that the losses of each step can be compared; all else as TRL comes.
  defaults: { train_sampling_strategy: "sequential" },
  candidates: combinations(decoderChoices).map((flags) => ({ ...flags, gradient_checkpointing: false })),
} as const;

export const works: readonly Work[] = [
  { ...decoder, name: "decoder-lora", method: "lora", passes: 2, hyperparameters: {} },
  { ...decoder, name: "decoder-full", method: "full", passes: 3, hyperparameters: { learning_rate: 2e-5 } },
  {
    name: "encoder",
    task: "classification",
    method: "full",
    family: "encoder",
    model: "minilm-l6-v2",
    peer: "transformers 5.18.0 Trainer",
    lengths: { mean: 30, spread: 0.6, least: 8, most: 64 },
    labels: ["class 0", "class 1", "class 2", "class 3"],
    rowsPerStep: 32,
    defaultSteps: 60,
    byLength: true,
    productWeights: 10_650_000,
    passes: 3,
    hyperparameters: { learning_rate: 5e-5, max_length: 128 },
    defaults: {},
    candidates: combinations({ bf16: [true, false], train_sampling_strategy: order }),
  },
];
