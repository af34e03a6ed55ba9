/** The specification of one attempt: everything a trainer reads. */
import type { Layers, TrainSpec } from "@fettle/contract";
import { AppError } from "../domain/error.js";
import { meantBefore } from "../domain/hyperparameters.js";
import type { Run } from "../domain/job.js";
import { readHeldOut, trainRowsKeys, validationRowsKey } from "./held-out.js";
import { type ReadyModelDeps, startOf } from "./models.js";
import type { Blobs, Store } from "./ports.js";
import { tokensKey } from "./files.js";
import { rowsKey } from "./process-file.js";
import { teacherSpec } from "./teacher.js";

export interface SpecOptions {
  numThreads: number;
  checkpointSeconds: number;
  layers: Layers;
}

/** `run.attempt` is the attempt about to start. Throws AppError when the model or the data is gone. */
export async function buildTrainSpec(deps: ReadyModelDeps, run: Run, options: SpecOptions): Promise<TrainSpec> {
  const { task, method, hyperparameters } = run;
  if (task === null || method === null || hyperparameters === null) {
    throw new AppError(
      "internal_error",
      `Run ${run.id} was queued before its task, method and hyperparameters were resolved.`,
    );
  }
  const start = await startOf(deps, run);
  return {
    version: 1,
    run_id: run.id,
    attempt: run.attempt,
    task,
    method,
    ...(await teacherSpec(deps, run)),
    base_model: { name: run.baseModel, family: run.family, path: start.basePath, adapter_path: start.adapterPath },
    data: await data(deps, run),
    output_dir: deps.blobs.localPath(`runs/${run.id}`),
    hyperparameters: { ...meantBefore, ...hyperparameters },
    seed: run.seed,
    runtime: {
      device: "auto",
      dtype: "auto",
      num_threads: options.numThreads,
      parallelism: "ddp",
      layers: options.layers,
      checkpoint_seconds: options.checkpointSeconds,
      checkpoint_steps: 0,
      keep_checkpoints: 3,
      heartbeat_seconds: 3,
      cache_dir: deps.blobs.localPath(tokensKey(run.projectId)),
    },
  };
}

/** The split made while the run was validated, when there is one; else the files as they are. */
async function data(deps: { store: Store; blobs: Blobs }, run: Run): Promise<TrainSpec["data"]> {
  const held = await readHeldOut(deps.blobs, run.id);
  if (held !== null) {
    const [first = "", ...more] = trainRowsKeys(run.id, held).map((key) => deps.blobs.localPath(key));
    return {
      train_path: first,
      train_sha256: held.train_sha256,
      ...(more.length > 0 && { more_train_paths: more }),
      validation_path: deps.blobs.localPath(validationRowsKey(run.id)),
      labels: run.labels,
    };
  }
  const training = await deps.store.files.get(run.projectId, run.trainingFile);
  const sha256 = training?.report?.rowsSha256 ?? null;
  if (sha256 === null)
    throw new AppError(
      "file_not_usable",
      `The training file ${run.trainingFile} has no checked rows. Upload it again.`,
      { param: "training_file" },
    );
  return {
    train_path: deps.blobs.localPath(rowsKey(run.trainingFile)),
    train_sha256: sha256,
    validation_path: run.validationFile === null ? null : deps.blobs.localPath(rowsKey(run.validationFile)),
    labels: run.labels,
  };
}
