/** `train`: uploads, starts the run, follows it to its end. Ctrl-C detaches; the run goes on. */
import {
  type CreateRun,
  hyperparametersSchema,
  methodSchema,
  type RunEventObject,
  type RunObject,
  taskSchema,
} from "@fettle/contract";
import type { Context } from "./context.js";
import { importFile, requireUsable } from "./data.js";
import { exitCodes, usageError } from "./exit.js";
import { duration, printable } from "./text.js";

export interface TrainOptions {
  model: string;
  teacher?: string;
  method?: string;
  task?: string;
  validation?: string;
  epochs?: string;
  batchSize?: string;
  learningRate?: string;
  maxLength?: string;
  loraR?: string;
  set?: string[];
  seed?: string;
  suffix?: string;
  detach?: boolean;
}

export async function train(context: Context, file: string, options: TrainOptions): Promise<number> {
  const request = requestOf(options);
  const training_file = await dataId(context, file);
  const validation_file = options.validation === undefined ? undefined : await dataId(context, options.validation);
  const run = await context.client.runs.create({
    ...request,
    training_file,
    ...(validation_file !== undefined && { validation_file }),
  });
  context.say(`  Run ${run.id} on ${run.base_model}${run.teacher === null ? "" : `, taught by ${run.teacher}`}`);
  if (options.detach) {
    context.result(run, run.id);
    context.say(`Follow it: fettle logs -f ${run.id}`);
    return exitCodes.ok;
  }
  return follow(context, run);
}

/** A path is uploaded; an id of data that is there already is used as it is. */
export async function dataId(context: Context, file: string): Promise<string> {
  const data = /^file-[A-Za-z0-9]+$/.test(file) ? await context.client.data.get(file) : await importFile(context, file);
  requireUsable(data);
  return data.id;
}

/** Everything of the request but the files. Throws a usage error that names the option. */
export function requestOf(options: TrainOptions): Omit<CreateRun, "training_file"> {
  const named = {
    num_train_epochs: options.epochs,
    per_device_train_batch_size: options.batchSize,
    learning_rate: options.learningRate,
    max_length: options.maxLength,
    lora_r: options.loraR,
  };
  const given = Object.entries(named).filter((pair): pair is [string, string] => pair[1] !== undefined);
  const hyperparameters = Object.fromEntries(
    [...given, ...(options.set ?? []).map(splitSetting)].map(([name, text]) => [name, parseValue(name, text)]),
  );
  return {
    model: options.model,
    hyperparameters,
    ...(options.teacher !== undefined && { teacher: options.teacher }),
    ...(options.task !== undefined && { task: oneOf("--task", options.task, taskSchema.options) }),
    ...(options.method !== undefined && { method: oneOf("--method", options.method, methodSchema.options) }),
    ...(options.suffix !== undefined && { suffix: options.suffix }),
    ...(options.seed !== undefined && { seed: wholeNumber("--seed", options.seed) }),
  };
}

function splitSetting(setting: string): [string, string] {
  const at = setting.indexOf("=");
  if (at <= 0) throw usageError(`--set ${setting}: expected NAME=VALUE, such as --set weight_decay=0.01.`);
  return [setting.slice(0, at), setting.slice(at + 1)];
}

const hyperparameterSchemas: Record<string, { safeParse(value: unknown): { success: boolean } }> =
  hyperparametersSchema.shape;

function parseValue(name: string, text: string): unknown {
  const schema = hyperparameterSchemas[name];
  if (schema === undefined) {
    const known = Object.keys(hyperparameterSchemas).join(", ");
    throw usageError(`--set ${name}: no such hyperparameter; expected one of ${known}.`);
  }
  const value = readValue(name, text);
  if (typeof value === "string" && !schema.safeParse(value).success) {
    throw usageError(`${name} is "${text}": expected ${expectedOf(name)}.`);
  }
  return value;
}

function readValue(name: string, text: string): unknown {
  if (text.trim() !== "" && !Number.isNaN(Number(text))) return Number(text);
  if (text === "null") return null;
  return name === "target_modules" && text !== "all-linear" ? text.split(",") : text;
}

/** The server checks ranges, with its own words; here only what cannot even be sent is refused. */
function expectedOf(name: string): string {
  const words = ["lr_scheduler_type", "sampling", "class_weights"] as const;
  const word = words.find((one) => one === name);
  return word === undefined ? "a number" : hyperparametersSchema.shape[word].options.join(", ");
}

export function oneOf<T extends string>(option: string, value: string, known: readonly T[]): T {
  const match = known.find((name) => name === value);
  if (match === undefined) throw usageError(`${option} is "${value}": expected one of ${known.join(", ")}.`);
  return match;
}

function wholeNumber(option: string, text: string): number {
  if (!/^\d+$/.test(text)) throw usageError(`${option} is "${text}": expected a whole number from 0.`);
  return Number(text);
}

/** Follows the run; returns the exit code. */
export async function follow(context: Context, run: RunObject): Promise<number> {
  const progress = new Progress(context);
  try {
    for await (const news of context.client.runs.follow(run.id, { signal: context.signal })) {
      if (news.type === "ended") return end(context, news.run);
      progress.tell(news.event);
      if (news.event.type !== "message") continue;
      const now = await context.client.runs.get(run.id);
      if (now.status === "paused") return pausedEnd(context, now);
    }
  } catch (error) {
    if (!context.signal.aborted) throw error;
    context.say(
      `Detached: ${run.id} goes on without this terminal.\n  follow it   fettle logs -f ${run.id}\n  pause it    fettle stop ${run.id}\n  end it      fettle stop ${run.id} --cancel`,
    );
    return exitCodes.interrupted;
  }
  return exitCodes.failed;
}

/** How a model of a task is asked from the terminal. */
const verbs: Partial<Record<string, string>> = {
  chat: "chat",
  preference: "chat",
  pretraining: "chat",
  seq2seq: "chat",
  classification: "classify",
  multilabel_classification: "classify",
  regression: "predict",
  ranking: "predict",
  token_classification: "predict",
  question_answering: 'predict --question "…"',
};

function end(context: Context, run: RunObject): number {
  const took =
    run.started_at !== null && run.finished_at !== null ? ` in ${duration(run.finished_at - run.started_at)}` : "";
  if (run.status === "succeeded") {
    context.say(`  ${run.id} succeeded${took}${memoryOf(run)}.`);
    context.result(run, run.fine_tuned_model ?? "");
    const verb = verbs[run.task ?? "chat"];
    if (verb !== undefined) context.say(`Try it: fettle ${verb} ${run.fine_tuned_model} "…"`);
    return exitCodes.ok;
  }
  context.say(
    run.error === null
      ? `  ${run.id} was ${run.status}.`
      : `error (${run.error.code}): ${printable(run.error.message)}`,
  );
  context.result(run, "");
  return exitCodes.failed;
}

/** At the peak, and what it had been expected to be. */
function memoryOf({ memory }: RunObject): string {
  if (memory === null || memory.peak_bytes === null) return "";
  const gigabytes = (bytes: number): string => `${(bytes / 1e9).toFixed(2)} GB`;
  const expected = memory.predicted_bytes === null ? "" : ` (${gigabytes(memory.predicted_bytes)} expected)`;
  return `; memory ${gigabytes(memory.peak_bytes)}${expected}`;
}

function pausedEnd(context: Context, run: RunObject): number {
  context.say(
    `  ${run.id} is paused${run.waiting === null ? "." : `: ${printable(run.waiting)}`}\nGo on with it: fettle resume ${run.id}`,
  );
  context.result(run, "");
  return exitCodes.failed;
}

/** On a terminal one line that is redrawn; else a line each tenth of the way. */
class Progress {
  private told = -1;
  private validLoss: number | null = null;

  constructor(private readonly context: Context) {}

  tell(event: RunEventObject): void {
    if (event.type === "message") {
      this.context.say(`  ${event.level === "info" ? "" : `${event.level}: `}${printable(event.message)}`);
      return;
    }
    const data = event.data ?? {};
    const number = (name: string): number | null => (typeof data[name] === "number" ? data[name] : null);
    this.validLoss = number("valid_loss") ?? this.validLoss;
    const [step, total] = [number("step"), number("total_steps")];
    const loss = number("train_loss");
    if (step === null || loss === null) return;
    const line = progressLine({
      step,
      total,
      loss,
      validLoss: this.validLoss,
      tokensPerSecond: number("tokens_per_second"),
      etaSeconds: number("eta_seconds"),
    });
    const tenth = total === null ? step : Math.floor((10 * step) / total);
    if (this.context.terminal.live) this.context.draw(line);
    else if (tenth > this.told) this.context.say(line);
    this.told = Math.max(this.told, tenth);
  }
}

interface ProgressFacts {
  step: number;
  total: number | null;
  loss: number;
  validLoss: number | null;
  tokensPerSecond: number | null;
  etaSeconds: number | null;
}

export function progressLine({ step, total, loss, validLoss, tokensPerSecond, etaSeconds }: ProgressFacts): string {
  const parts = [`  step ${step}${total === null ? "" : `/${total}`}`, `loss ${loss.toFixed(4)}`];
  if (validLoss !== null) parts.push(`validation loss ${validLoss.toFixed(4)}`);
  if (tokensPerSecond !== null) parts.push(`${Math.round(tokensPerSecond)} tokens/s`);
  if (etaSeconds !== null) parts.push(`${duration(etaSeconds)} left`);
  return parts.join("  ");
}
