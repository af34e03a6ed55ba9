/** `cross-validate`: one run a fold, told as each ends, with mean and interval. Ctrl-C detaches; it goes on. */
import type { CrossValidationObject, FoldObject } from "@fettle/contract";
import type { Context } from "./context.js";
import { exitCodes, usageError } from "./exit.js";
import { duration, figure, moment, printable, table } from "./text.js";
import { dataId, requestOf, type TrainOptions } from "./train.js";

export interface CrossValidateOptions extends Omit<TrainOptions, "validation"> {
  folds?: number;
  minutes?: number;
  money?: number;
  parallel?: number;
}

export async function crossValidate(context: Context, file: string, options: CrossValidateOptions): Promise<number> {
  const { folds, minutes, money, parallel } = options;
  const request = requestOf(options);
  const made = await context.client.crossValidations.create({
    ...request,
    training_file: await dataId(context, file),
    budget: { ...(minutes !== undefined && { minutes }), ...(money !== undefined && { money }) },
    ...(folds !== undefined && { folds }),
    ...(parallel !== undefined && { parallel }),
  });
  context.say(`  Cross-validation ${made.id}: ${made.folds} folds`);
  for (const warning of made.warnings) context.say(`  warn: ${printable(warning)}`);
  if (options.detach) {
    context.result(made, made.id);
    context.say(`Look at it: fettle cross-validations ${made.id}`);
    return exitCodes.ok;
  }
  return follow(context, made.id);
}

async function follow(context: Context, id: string): Promise<number> {
  let told = 0;
  try {
    for await (const now of context.client.crossValidations.follow(id, { signal: context.signal })) {
      // In order, so that each is told once, whatever ended first.
      for (let next = now.runs[told]; next !== undefined && hasEnded(next); next = now.runs[told]) {
        context.say(foldLine(now, next));
        told += 1;
      }
      context.draw(progressLine(now));
      if (now.finished_at !== null) return end(context, now);
    }
  } catch (error) {
    if (!context.signal.aborted) throw error;
    context.say(
      `Detached: ${id} goes on without this terminal.\n  look at it   fettle cross-validations ${id}\n  end it       fettle cross-validations ${id} --cancel`,
    );
    return exitCodes.interrupted;
  }
  return exitCodes.failed;
}

const hasEnded = ({ status }: FoldObject): boolean => ["succeeded", "failed", "cancelled"].includes(status);

function foldLine({ result }: CrossValidationObject, { fold, status, metrics, reason }: FoldObject): string {
  const score = scoreOf(result, metrics);
  return `  fold ${fold} ${status}${score === null ? "" : `, ${score}`}${reason === null ? "" : ` (${printable(reason)})`}`;
}

function scoreOf(result: CrossValidationObject["result"], metrics: FoldObject["metrics"]): string | null {
  const value = metrics?.[result?.metric ?? ""];
  return value === undefined ? null : `${result?.metric} ${figure(value)}`;
}

function progressLine({ runs, folds, seconds_left }: CrossValidationObject): string {
  const parts = [`  ${runs.filter(hasEnded).length} of ${folds} folds`];
  if (seconds_left !== null) parts.push(`about ${duration(seconds_left)} left`);
  return parts.join("  ");
}

function end(context: Context, done: CrossValidationObject): number {
  const took = done.finished_at === null ? "" : ` in ${duration(done.finished_at - done.created_at)}`;
  context.say(`  ${done.id} ${done.status}${took}.`);
  if (done.error !== null) context.say(`error (${done.error.code}): ${printable(done.error.message)}`);
  context.result(done, resultText(done));
  if (done.status === "succeeded")
    context.say(
      `Each fold is a model of a part of the rows. Of all rows: fettle train ${done.training_file} -m ${done.model}`,
    );
  return done.status === "succeeded" ? exitCodes.ok : exitCodes.failed;
}

/** Every metric over the folds, and what it comes to. */
function resultText({ result }: CrossValidationObject): string {
  if (result === null) return "";
  const rows = Object.entries(result.metrics).map(([name, { mean, std, interval, folds }]) => [
    name,
    figure(mean),
    interval === null ? "-" : `${figure(interval[0])} to ${figure(interval[1])}`,
    std === null ? "-" : figure(std),
    String(folds),
  ]);
  return `${table(["METRIC", "MEAN", "95 % INTERVAL", "STD", "FOLDS"], rows)}\n${printable(result.message)}`;
}

/** All cross-validations, or one with its folds. */
export async function crossValidations(
  context: Context,
  { id, cancel }: { id?: string; cancel: boolean },
): Promise<number> {
  const { crossValidations: client } = context.client;
  if (id === undefined) {
    if (cancel) throw usageError("--cancel needs a cross-validation: expected fettle cross-validations ID --cancel.");
    const { data } = await client.list({ limit: 100 });
    const head = ["CROSS-VALIDATION", "STATUS", "FOLDS", "MODEL", "CREATED", "MEAN"];
    const rows = data.map((one) => {
      const mean = one.result?.metrics[one.result.metric]?.mean;
      return [
        one.id,
        one.status,
        `${one.runs.filter(hasEnded).length}/${one.folds}`,
        one.model,
        moment(one.created_at),
        mean === undefined ? "" : `${one.result?.metric} ${figure(mean)}`,
      ];
    });
    const none = "No cross-validations yet. Start one: fettle cross-validate data.jsonl --model NAME.";
    context.result({ data }, data.length > 0 ? table(head, rows) : none);
    return exitCodes.ok;
  }
  const one = cancel ? await client.cancel(id) : await client.get(id);
  const rows = one.runs.map(({ fold, status, metrics, run_id, reason }) => [
    String(fold),
    status,
    scoreOf(one.result, metrics) ?? "-",
    run_id,
    printable(reason ?? ""),
  ]);
  const facts = [`${one.id} is ${one.status}.`, ...one.warnings, one.error?.message, resultText(one)];
  const text = [table(["FOLD", "STATUS", "SCORE", "RUN", "REASON"], rows), ...facts].filter(Boolean).join("\n");
  context.result(one, text);
  return exitCodes.ok;
}
