/**
 * The memory a run is told to need before its first step, beside what its process held at the peak.
 *
 *   npm run bench -- memory [--json] [--only WORK] [--dtype bfloat16|float32] [--threads N]
 *
 * Works are those of the trainer bench, and others by which the prediction was never set: fewer rows, fewer or more
 * layers, another number type. Memory is not disturbed by what else the machine does.
 */
import { readFileSync, rmSync } from "node:fs";
import { availableParallelism, cpus } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import type { MemoryParts } from "@fettle/contract";
import { type MemoryWork, memoryWorks } from "./memory/works.js";
import { say } from "./trainer/environment.js";
import { prepare } from "./trainer/prepare.js";
import { readEvents, runOurs } from "./trainer/sides.js";

interface Row {
  work: string;
  held_out: boolean;
  dtype: MemoryWork["dtype"];
  predicted_bytes: number;
  parts: MemoryParts;
  peak_bytes: number;
  /** Of the peak. */
  difference: number;
}

const heldOutRows = 32;
const dtypes = ["bfloat16", "float32"] as const;

async function measure({ name, work, heldOut, dtype }: MemoryWork, numThreads: number): Promise<Row> {
  const setting = { ...(await prepare(work, { steps: null, heldOut: heldOutRows, numThreads })), dtype };
  try {
    await runOurs(setting);
    const events = readEvents(join(setting.folder, "ours", "events.jsonl"));
    const parts = events.flatMap((event) => (event.type === "data" && event.memory ? [event.memory] : [])).at(0);
    const peak = events.flatMap((event) => (event.type === "finished" ? [event.peak_rss_bytes] : [])).at(0);
    if (parts === undefined || peak === undefined) throw new Error(`${name}: the trainer told of no memory`);
    const predicted = Object.values(parts).reduce((sum, bytes) => sum + bytes, 0);
    const difference = predicted / peak - 1;
    return { work: name, held_out: heldOut, dtype, predicted_bytes: predicted, parts, peak_bytes: peak, difference };
  } finally {
    rmSync(setting.folder, { recursive: true, force: true });
  }
}

const gigabytes = (bytes: number): string => (bytes / 1e9).toFixed(2);

function line(row: Row): string {
  const parts = Object.entries(row.parts).map(([name, bytes]) => `${name} ${gigabytes(bytes)}`);
  const difference = `${row.difference > 0 ? "+" : ""}${(100 * row.difference).toFixed(1)} %`;
  return `${row.work}${row.held_out ? " (held out)" : ""}: predicted ${gigabytes(row.predicted_bytes)} GB, measured ${gigabytes(row.peak_bytes)}, ${difference} [${parts.join(", ")}]`;
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      json: { type: "boolean", default: false },
      help: { type: "boolean", short: "h", default: false },
      only: { type: "string" },
      dtype: { type: "string", default: "bfloat16" },
      threads: { type: "string", default: String(availableParallelism()) },
    },
  });
  const dtype = dtypes.find((one) => one === values.dtype);
  const all = dtype === undefined ? [] : memoryWorks(dtype);
  const chosen = all.filter(({ name }) => values.only === undefined || name === values.only);
  if (values.help || chosen.length === 0) {
    console.log(readFileSync(import.meta.filename, "utf8").split("*/")[0]);
    say(
      `WORK is one of ${memoryWorks("bfloat16")
        .map(({ name }) => name)
        .join(", ")}.`,
    );
    return values.help ? 0 : 2;
  }
  const threads = Number(values.threads);
  const rows: Row[] = [];
  for (const work of chosen) {
    const row = await measure(work, threads);
    rows.push(row);
    (values.json ? say : console.log)(line(row));
  }
  const machine = { cpu: cpus()[0]?.model ?? "unknown", threads };
  if (values.json) console.log(JSON.stringify({ bench: "memory", machine, rows }));
  return 0;
}

process.exitCode = await main();
