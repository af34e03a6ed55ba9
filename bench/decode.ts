/**
 * Token steps of a served decoder on a CPU: its linear layers as PyTorch keeps them, and as we do.
 *
 *   npm run bench -- decode [--json] [--pairs 7] [--rows 1,4,16]
 */
import { mkdtempSync, rmSync } from "node:fs";
import { availableParallelism, cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { ourPython, root, run } from "./trainer/environment.js";

interface Times {
  plain_ms: number;
  ours_ms: number;
  ratio: number;
  ratio_range: [number, number];
}
interface Result {
  model: string;
  threads: number;
  layers: number;
  rows: { rows: number; pairs: number; prompt: Times; step: Times }[];
}

const { values } = parseArgs({
  options: {
    json: { type: "boolean", default: false },
    pairs: { type: "string", default: "7" },
    rows: { type: "string", default: "1,4,16" },
  },
});
const threads = String(availableParallelism());
const folder = mkdtempSync(join(tmpdir(), "fettle-decode-"));
try {
  const args = ["smollm2-135m-instruct", folder, threads, values.pairs, ...values.rows.split(",")];
  const env = { PYTHONPATH: join(root, "trainer/src"), OMP_NUM_THREADS: threads, HF_HUB_OFFLINE: "1" };
  const out = await run(ourPython, [join(root, "bench/decode/measure.py"), ...args], { env, capture: true });
  const result = JSON.parse(out) as Result;
  if (values.json) console.log(JSON.stringify({ bench: "decode", cpu: cpus()[0]?.model ?? "unknown", ...result }));
  else
    for (const { rows, prompt, step } of result.rows)
      console.log(
        `${rows} rows: step ${step.plain_ms.toFixed(0)} -> ${step.ours_ms.toFixed(0)} ms (${step.ratio.toFixed(2)}x), prompt ${prompt.plain_ms.toFixed(0)} -> ${prompt.ours_ms.toFixed(0)} ms (${prompt.ratio.toFixed(2)}x)`,
      );
} finally {
  rmSync(folder, { recursive: true, force: true });
}
