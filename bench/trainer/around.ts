/** The two works that are no rate of steps: the time until the first one, and a whole job. */
import { rmSync } from "node:fs";
import { say } from "./environment.js";
import { firstStepRows } from "./first-step.js";
import { jobRow, jobRows } from "./job.js";
import { prepare } from "./prepare.js";
import type { Setting } from "./sides.js";
import type { StartRow } from "./start-row.js";
import { type Work, works } from "./works.js";

export interface Around {
  python: string;
  pairs: number;
  gflops: { float32: number; bfloat16: number };
  numThreads: number;
}

const heldOut = 32;

export const aroundWorks = ["first-step", "job"] as const;

/** `only`: one of `aroundWorks`; undefined for both, anything else for none. */
export async function aroundSteps(only: string | undefined, bench: Around): Promise<StartRow[]> {
  const [encoder, decoder] = ["encoder", "decoder-lora"].map(named) as [Work, Work];
  const rows: StartRow[] = [];
  if (only === undefined || only === "first-step") {
    for (const work of [encoder, decoder])
      rows.push(
        ...(await within(bench, { ...work, defaultSteps: 1 }, (setting) =>
          firstStepRows(setting, bench.python, bench.pairs),
        )),
      );
  }
  if (only === undefined || only === "job") {
    const job = { ...encoder, defaultSteps: Math.ceil(jobRows / encoder.rowsPerStep) };
    // The fastest of the flags that probing finds for this kind of model, without the probing.
    const bf16 = bench.gflops.bfloat16 > bench.gflops.float32;
    const best = { train_sampling_strategy: "group_by_length", bf16 };
    for (const [kind, flags] of [["defaults", encoder.defaults] as const, ["best", best] as const])
      rows.push(
        await within(bench, job, (setting) => jobRow(setting, { python: bench.python, flags, kind }, bench.pairs)),
      );
  }
  return rows;
}

function named(name: string): Work {
  const work = works.find((one) => one.name === name);
  if (work === undefined) throw new Error(`there is no work ${name}`);
  return work;
}

async function within<T>(bench: Around, work: Work, measure: (setting: Setting) => Promise<T>): Promise<T> {
  say(`${work.name}: writing rows and weights`);
  const setting = await prepare(work, { steps: null, heldOut, numThreads: bench.numThreads });
  try {
    return await measure(setting);
  } finally {
    rmSync(setting.folder, { recursive: true, force: true });
  }
}
