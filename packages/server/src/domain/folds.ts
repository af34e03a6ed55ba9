/** What a cross-validation says in the end: every metric over its folds, and what to think of it. Pure. */
import type { FoldsResult } from "@fettle/contract";
import { summarize } from "./confidence.js";
import { hasEnded, type Sweep, type Trial } from "./sweep.js";

/** Of the model that the run keeps; null until it has succeeded, or when nothing was measured. */
export function metricsOfFold({ run, evaluations }: Trial): Record<string, number> | null {
  const kept = run?.status === "succeeded" ? evaluations.findLast(({ best }) => best) : undefined;
  return kept === undefined ? null : { valid_loss: kept.loss, ...kept.metrics };
}

/** The first that a task measures is what its folds are told by. */
const telling = [
  "f1_macro",
  "accuracy",
  "entity_f1",
  "f1",
  "rmse",
  "pair_accuracy",
  "mrr_at_10",
  "reward_accuracy",
  "valid_loss",
];

const shown = (value: number): string => String(Number(value.toPrecision(3)));

/** Null: no fold has ended with a score. */
export function foldsResult({ folds = 0 }: Pick<Sweep, "folds">, trials: readonly Trial[]): FoldsResult | null {
  const measured = trials.map(metricsOfFold).filter((one) => one !== null);
  if (measured.length === 0) return null;
  const metrics: FoldsResult["metrics"] = {};
  for (const name of new Set(measured.flatMap((one) => Object.keys(one)))) {
    const values = measured.flatMap((one) => one[name] ?? []);
    const summary = summarize(values);
    metrics[name] = {
      folds: values.length,
      mean: summary?.mean ?? values[0] ?? 0,
      std: summary?.std ?? null,
      interval: summary?.interval ?? null,
    };
  }
  const metric = telling.find((name) => name in metrics) ?? "valid_loss";
  return { message: messageOf({ folds, metric, measure: metrics[metric], trials }), metric, metrics };
}

interface Told {
  folds: number;
  metric: string;
  measure: FoldsResult["metrics"][string] | undefined;
  trials: readonly Trial[];
}

function messageOf({ folds, metric, measure, trials }: Told): string {
  if (measure === undefined) return "";
  const { mean, std, interval, folds: scored } = measure;
  if (std === null || interval === null) return `${metric} is ${shown(mean)} on the one fold that has ended so far.`;
  const range = `95 % interval ${shown(interval[0])} to ${shown(interval[1])}, standard deviation ${shown(std)}`;
  const parts = [
    `${metric} is ${shown(mean)} on average over ${scored === folds ? "" : `${scored} of `}${folds} folds (${range}).`,
  ];
  const lacking = trials.filter((trial) => hasEnded(trial) && metricsOfFold(trial) === null);
  for (const trial of lacking) parts.push(`Fold ${trial.plan.number + 1} has no score: ${whyNot(trial)}`);
  parts.push("The folds share training rows, so the interval is approximate.");
  return parts.join(" ");
}

function whyNot({ plan: { stopped }, run }: Trial): string {
  const reason =
    stopped?.reason ?? (run?.error ? `${run.error.code}: ${run.error.message}` : "its held-out rows measured nothing");
  return /[.!?]$/.test(reason) ? reason : `${reason}.`;
}

/** A class with fewer rows than folds is missing where the model is judged, or where it learns. */
export function rareInFolds(labels: Readonly<Record<string, number>> | null, folds: number): string[] {
  const rare = Object.entries(labels ?? {}).filter(([, count]) => count < folds);
  if (rare.length === 0) return [];
  const named = rare.slice(0, 8).map(([name, count]) => `"${name}" (${count})`);
  const more = rare.length > 8 ? " …" : "";
  return [
    `${rare.length === 1 ? "1 class has" : `${rare.length} classes have`} fewer rows than there are folds: ${named.join(", ")}${more}. Some folds are judged without ${rare.length === 1 ? "it" : "them"}. Add rows, or ask for fewer folds.`,
  ];
}
