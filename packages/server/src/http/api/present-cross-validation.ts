/** Cross-validations and their folds as our own API shows them. */
import type { CrossValidationObject, FoldObject } from "@fettle/contract";
import type { CrossValidationView } from "../../app/cross-validations.js";
import { foldsResult, metricsOfFold, rareInFolds } from "../../domain/folds.js";
import { usedMs } from "../../domain/sweep-budget.js";
import type { Trial } from "../../domain/sweep.js";
import { toSeconds, toSecondsOrNull } from "../openai/present.js";
import { budgetObject, moneyUsed, reasonOf, secondsLeft, secondsOf, statusOf } from "./present-sweep.js";

export function crossValidationObject(
  { sweep, trials, labels }: CrossValidationView,
  now: number,
): CrossValidationObject {
  const used = usedMs(trials, now);
  const { folds = 0 } = sweep;
  return {
    id: sweep.id,
    object: "cross_validation",
    created_at: toSeconds(sweep.createdAt),
    finished_at: toSecondsOrNull(sweep.finishedAt),
    status: sweep.status,
    model: sweep.model,
    teacher: sweep.request.teacher ?? null,
    training_file: sweep.trainingFile,
    hyperparameters: sweep.request.hyperparameters,
    folds,
    parallel: sweep.parallel,
    budget: budgetObject(sweep.budget),
    seed: sweep.seed,
    metadata: sweep.metadata,
    warnings: rareInFolds(labels, folds),
    runs: trials.map((trial) => foldObject(trial, now)),
    minutes_used: used / 60_000,
    money_used: moneyUsed(sweep, used),
    seconds_left: secondsLeft(sweep, trials, now),
    result: foldsResult(sweep, trials),
    error: sweep.error,
  };
}

function foldObject(trial: Trial, now: number): FoldObject {
  const status = statusOf(trial);
  return {
    fold: trial.plan.number + 1,
    object: "cross_validation.fold",
    status: status === "pruned" ? "cancelled" : status,
    reason: reasonOf(trial),
    run_id: trial.plan.runId,
    metrics: metricsOfFold(trial),
    seconds: secondsOf(trial, now),
    fine_tuned_model: trial.run?.fineTunedModel ?? null,
  };
}
