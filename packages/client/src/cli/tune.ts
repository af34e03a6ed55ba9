/** `tune` and `sweeps`: searches hyperparameters and tells what it found. Ctrl-C detaches; the sweep goes on. */
import {
  type Dimension,
  pruningSchema,
  searchedNames,
  searchSchema,
  type SearchedValue,
  type SweepObject,
  type TrialObject,
} from "@fettle/contract";
import type { CreateSweepRequest } from "../sweeps.js";
import type { Context } from "./context.js";
import { exitCodes, usageError } from "./exit.js";
import { duration, figure, moment, printable, table } from "./text.js";
import { dataId, oneOf, requestOf, type TrainOptions } from "./train.js";

export interface TuneOptions extends TrainOptions {
  space?: string[];
  search?: string;
  prune?: string;
  trials?: number;
  minutes?: number;
  money?: number;
  metric?: string;
  minimize?: boolean;
  maximize?: boolean;
  parallel?: number;
  repeats?: number;
}

export async function tune(context: Context, file: string, options: TuneOptions): Promise<number> {
  const request = sweepRequest(options);
  const training_file = await dataId(context, file);
  const validation_file = options.validation === undefined ? undefined : await dataId(context, options.validation);
  const sweep = await context.client.sweeps.create({
    ...requestOf(options),
    ...request,
    training_file,
    ...(validation_file !== undefined && { validation_file }),
  });
  const planned =
    sweep.trials.planned === null ? "as many trials as its time allows" : `${sweep.trials.planned} trials`;
  context.say(`  Sweep ${sweep.id} over ${Object.keys(sweep.space).join(", ")}: ${planned}`);
  if (options.detach) {
    context.result(sweep, sweep.id);
    context.say(`Look at it: fettle sweeps ${sweep.id}`);
    return exitCodes.ok;
  }
  return follow(context, sweep.id);
}

type OfSweep = Omit<CreateSweepRequest, "model" | "training_file">;

/** What a sweep asks beside what a run asks. Throws a usage error that names the option. */
export function sweepRequest(options: TuneOptions): OfSweep {
  const { trials, minutes, money, metric, parallel, repeats } = options;
  const budget = {
    ...(trials !== undefined && { trials }),
    ...(minutes !== undefined && { minutes }),
    ...(money !== undefined && { money }),
  };
  const direction = options.minimize ? "minimize" : options.maximize ? "maximize" : undefined;
  if (direction !== undefined && metric === undefined)
    throw usageError(`--${direction} needs a metric: expected --metric NAME beside it.`);
  const space = (options.space ?? []).map(dimensionOf);
  const twice = space.find(([name], at) => space.findIndex(([other]) => other === name) < at);
  if (twice !== undefined)
    throw usageError(`--space ${twice[0]} is given twice: expected all its values in one, such as ${twice[0]}=4,8.`);
  return {
    budget,
    ...(space.length > 0 && { space: Object.fromEntries(space) }),
    ...(options.search !== undefined && { search: oneOf("--search", options.search, searchSchema.options) }),
    ...(options.prune !== undefined && { pruning: oneOf("--prune", options.prune, pruningSchema.options) }),
    ...(metric !== undefined && { metric: { name: metric, ...(direction !== undefined && { direction }) } }),
    ...(parallel !== undefined && { parallel }),
    ...(repeats !== undefined && { repeats }),
  };
}

const forms = "NAME=1,2,4 or NAME=MIN..MAX, with :log or :STEP behind it if wanted";

/** `lora_r=4,8`, `learning_rate=1e-5..1e-3:log`, `warmup_ratio=0..0.2:0.05`. */
function dimensionOf(text: string): [string, Dimension] {
  const [, name = "", spec = ""] = /^([a-z_]+)=(.+)$/.exec(text) ?? [];
  if (spec === "") throw usageError(`--space ${text}: expected ${forms}.`);
  if (!(searchedNames as readonly string[]).includes(name))
    throw usageError(`--space ${name}: it cannot be searched; expected one of ${searchedNames.join(", ")}.`);
  const range = /^([^.]*(?:\.\d+)?(?:e-?\d+)?)\.\.([^:]+)(?::(.+))?$/i.exec(spec);
  if (range === null) return [name, { values: spec.split(",").map(readValue) }];
  const [min, max] = [numberIn(range[1]), numberIn(range[2])];
  const how = range[3];
  const step = how === undefined || how === "log" ? undefined : numberIn(how);
  if ([min, max, step ?? 0].some(Number.isNaN)) throw usageError(`--space ${text}: expected ${forms}.`);
  return [name, { min, max, log: how === "log", ...(step !== undefined && { step }) }];
}

/** NaN for an empty text too, which `Number` takes for 0. */
const numberIn = (text = ""): number => (text.trim() === "" ? Number.NaN : Number(text));

function readValue(text: string): SearchedValue {
  if (text === "null") return null;
  return text.trim() !== "" && !Number.isNaN(Number(text)) ? Number(text) : text;
}

async function follow(context: Context, sweepId: string): Promise<number> {
  let told = 0;
  try {
    for await (const sweep of context.client.sweeps.follow(sweepId, { signal: context.signal })) {
      const trials = await context.client.sweeps.trials(sweepId);
      // In order, so that each is told once, whatever ended first.
      for (; trials[told] !== undefined && hasEnded(trials[told]); told += 1)
        context.say(trialLine(sweep, trials[told]));
      context.draw(progressLine(sweep));
      if (sweep.finished_at !== null) return end(context, sweep, trials);
    }
  } catch (error) {
    if (!context.signal.aborted) throw error;
    context.say(
      `Detached: ${sweepId} goes on without this terminal.\n  look at it   fettle sweeps ${sweepId}\n  end it       fettle sweeps ${sweepId} --cancel`,
    );
    return exitCodes.interrupted;
  }
  return exitCodes.failed;
}

const hasEnded = (trial: TrialObject | undefined): boolean =>
  trial !== undefined && ["succeeded", "failed", "pruned", "cancelled"].includes(trial.status);
const settings = (values: Record<string, SearchedValue>): string =>
  Object.entries(values)
    .map(([name, value]) => `${name}=${typeof value === "number" ? figure(value) : value}`)
    .join(" ");
const roles: Record<TrialObject["role"], string> = {
  automatic: "automatic values",
  search: "",
  repeat_automatic: "automatic values, another seed",
  repeat_best: "best values, another seed",
};

function trialLine({ metric }: SweepObject, trial: TrialObject | undefined): string {
  if (trial === undefined) return "";
  const what = [roles[trial.role], settings(trial.values)].filter(Boolean).join(": ");
  const score = trial.score === null ? "" : `, ${metric.name} ${figure(trial.score)}`;
  const why = trial.reason === null ? "" : ` (${printable(trial.reason)})`;
  return `  trial ${trial.number} ${trial.status}${score}  ${what}${why}`;
}

export function progressLine({ trials, phase, best, automatic, seconds_left }: SweepObject): string {
  const parts = [
    phase === "verdict"
      ? "  repeats for the verdict"
      : `  trial ${trials.started}${trials.planned === null ? "" : `/${trials.planned}`}`,
  ];
  if (best !== null) parts.push(`best ${figure(best.score)} (trial ${best.trial})`);
  if (automatic !== null) parts.push(`automatic ${figure(automatic.score)}`);
  if (trials.pruned > 0) parts.push(`${trials.pruned} pruned`);
  if (seconds_left !== null) parts.push(`about ${duration(seconds_left)} left`);
  return parts.join("  ");
}

function end(context: Context, sweep: SweepObject, trials: TrialObject[]): number {
  const took = sweep.finished_at === null ? "" : ` in ${duration(sweep.finished_at - sweep.created_at)}`;
  context.say(`  ${sweep.id} ${sweep.status}${took}.`);
  const { best, verdict } = sweep;
  if (sweep.error !== null) context.say(`error (${sweep.error.code}): ${printable(sweep.error.message)}`);
  if (verdict !== null) context.say(`  ${verdict.message}`);
  context.result({ ...sweep, trial_list: trials }, best === null ? "" : resultText(sweep));
  return sweep.status === "succeeded" ? exitCodes.ok : exitCodes.failed;
}

const resultText = ({ best, metric }: SweepObject): string =>
  best === null
    ? ""
    : [
        `best: trial ${best.trial}, ${metric.name} ${figure(best.score)}`,
        settings(best.values),
        best.fine_tuned_model ?? "",
      ]
        .filter(Boolean)
        .join("\n");

/** All sweeps, or one with its trials. */
export async function sweeps(context: Context, { id, cancel }: { id?: string; cancel: boolean }): Promise<number> {
  const { client } = context;
  if (id === undefined) {
    if (cancel) throw usageError("--cancel needs a sweep: expected fettle sweeps ID --cancel.");
    const { data } = await client.sweeps.list({ limit: 100 });
    const head = ["SWEEP", "STATUS", "TRIALS", "MODEL", "CREATED", "BEST"];
    const rows = data.map((one) => [
      one.id,
      one.status,
      `${one.trials.started}${one.trials.planned === null ? "" : `/${one.trials.planned}`}`,
      one.model,
      moment(one.created_at),
      one.best === null ? "" : `${one.metric.name} ${figure(one.best.score)}`,
    ]);
    context.result(
      { data },
      data.length > 0 ? table(head, rows) : "No sweeps yet. Start one: fettle tune data.jsonl --model NAME.",
    );
    return exitCodes.ok;
  }
  const sweep = cancel ? await client.sweeps.cancel(id) : await client.sweeps.get(id);
  const trials = await client.sweeps.trials(id);
  const names = Object.keys(sweep.space);
  const head = ["TRIAL", "STATUS", sweep.metric.name.toUpperCase(), ...names, "SEED", "RUN", "REASON"];
  const rows = trials.map((trial) => [
    `${trial.number}${trial.role === "search" ? "" : ` ${roles[trial.role]}`}`,
    trial.status,
    trial.score === null ? "-" : figure(trial.score),
    ...names.map((name) => {
      const value = trial.values[name];
      return value === undefined ? "-" : typeof value === "number" ? figure(value) : String(value);
    }),
    String(trial.seed),
    trial.run_id,
    printable(trial.reason ?? ""),
  ]);
  const facts = [`${sweep.id} is ${sweep.status}.`, sweep.error?.message, sweep.verdict?.message, resultText(sweep)];
  context.result({ ...sweep, trial_list: trials }, [table(head, rows), ...facts].filter(Boolean).join("\n"));
  return exitCodes.ok;
}
