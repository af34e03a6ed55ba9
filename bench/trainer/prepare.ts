/** Rows, weights and what else both sides read, written once into a folder of its own. */
import { mkdirSync, mkdtempSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { cache, ourPython, root, run } from "./environment.js";
import type { Setting } from "./sides.js";
import { hyperparametersOf, type Work } from "./works.js";

interface Amounts {
  /** Null: the work's own. */
  steps: number | null;
  heldOut: number;
  numThreads: number;
}

const seed = 7;

export async function prepare(work: Work, { steps, heldOut, numThreads }: Amounts): Promise<Setting> {
  const parent = join(cache, "works");
  mkdirSync(parent, { recursive: true });
  const folder = mkdtempSync(join(parent, `${work.name}-`));
  const rows = (steps ?? work.defaultSteps) * work.rowsPerStep;
  const config = {
    folder,
    model: work.model,
    num_layers: work.numLayers ?? null,
    task: work.task,
    method: work.method,
    labels: work.labels,
    lengths: work.lengths,
    target_lengths: work.targetLengths,
    seed,
    // How the trainer seeds its first epoch. Should it change, the comparison of batches fails and says so.
    epoch_seed: seed * 1_000_003,
    by_length: work.byLength,
    num_rows: rows,
    num_held_out: heldOut,
    hyperparameters: hyperparametersOf(work),
  };
  const path = join(folder, "prepare.json");
  writeFileSync(path, JSON.stringify(config));
  const env = { PYTHONPATH: join(root, "trainer/src"), OMP_NUM_THREADS: String(numThreads) };
  await run(ourPython, [join(root, "bench/trainer/prepare.py"), path], { env });
  return { work, folder, numThreads, seed };
}
