/** What a project's runs that ended well on this machine say about its speed. What others train is theirs to know. */
import { operationsOf } from "../domain/estimate.js";
import type { Run } from "../domain/job.js";
import type { Trained } from "../domain/pace.js";
import type { BaseModel, Store } from "./ports.js";

/** Older ones say little about the machine as it is now. */
const newest = 20;

export interface TrainedInput {
  projectId: string;
  /** As in `Machine`: runs of another machine that had this home are left out. */
  machine: string;
  known: readonly BaseModel[];
}

export async function trainedHere(
  store: Pick<Store, "runs">,
  { projectId, machine, known }: TrainedInput,
): Promise<Trained[]> {
  const runs = await store.runs.succeeded(projectId, newest);
  return runs.flatMap((run) => (run.estimate?.machine === machine ? trained(run, known) : []));
}

function trained(run: Run, known: readonly BaseModel[]): Trained[] {
  const { baseModel, family, method, trainSeconds, trainedTokens } = run;
  const size = known.find(({ name }) => name === baseModel);
  if (size === undefined || method === null || trainedTokens === null || trainSeconds === undefined) return [];
  // Runs of an older version have no such value, and are of another method.
  const trainableLayers = run.hyperparameters?.trainable_layers ?? 1;
  const operations = operationsOf(size, { tokens: trainedTokens, epochs: 1, method, family, trainableLayers });
  return [{ baseModel, method, operations, seconds: trainSeconds }];
}
