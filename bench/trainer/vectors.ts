/** A tuned encoder is loaded by the peer too: there its vectors must be those that our server gives. */
import { join } from "node:path";
import { ourPython, root, run, say } from "./environment.js";
import type { Setting } from "./sides.js";

/** Both in fp32: another order of summing, no more. */
const most = 1e-5;

interface Loaded {
  num_texts: number;
  max_abs_diff: number;
  least_cosine: number;
}

/** The largest difference of a component, of what our last run saved. Throws when it is more than rounding. */
export async function vectorsDifference({ folder, numThreads }: Setting, python: string): Promise<number> {
  const artefact = join(folder, "ours", "artefact");
  const args = [join(root, "bench/trainer/loaded.py"), ourPython, artefact, join(folder, "held_out.jsonl")];
  const env = { OMP_NUM_THREADS: String(numThreads), HF_HUB_OFFLINE: "1", PYTHONPATH: join(root, "trainer/src") };
  const found = JSON.parse(await run(python, args, { env, capture: true })) as Loaded;
  say(`  the saved model, loaded by the peer: ${JSON.stringify(found)}`);
  if (!(found.max_abs_diff < most))
    throw new Error(`the peer makes other vectors of the saved model: they differ by ${found.max_abs_diff}`);
  return found.max_abs_diff;
}
