/**
 * How fast this machine multiplies matrices, measured once by the trainer's `probe` and kept in `<home>/machine.json`
 * until processor, threads or torch change. It serves the first estimates: later ones rest on runs that ended here.
 */
import { execFile } from "node:child_process";
import { readFile, rename, writeFile } from "node:fs/promises";
import { cpus, setPriority } from "node:os";
import { join } from "node:path";
import { z } from "zod";
import type { Log } from "../app/ports.js";

export interface Processor {
  /** Floating point operations a second on all threads; null: not measured, or not yet. */
  product(): number | null;
  /** Settled when it is measured or could not be. */
  measured: Promise<void>;
  /** Ends a measurement that still goes on. */
  close(): Promise<void>;
}

export interface ProcessorOptions {
  home: string;
  python: string;
  /** Of a trainer, with its number of threads. */
  environment: Readonly<Record<string, string>>;
  name: string;
  log: Pick<Log, "warn">;
}

const fileSchema = z.object({ machine: z.string(), torch: z.string(), flops: z.number().positive() });
type Kept = z.infer<typeof fileSchema>;
const probeSchema = z.object({
  gflops: z.record(z.string(), z.number().positive()),
  fastest_dtype: z.string(),
  devices: z.array(z.unknown()),
});
const timeoutMs = 60_000;
const askTorch = "from importlib.metadata import version; print(version('torch'))";

export const processorName = (threads: number): string =>
  `${cpus()[0]?.model.trim() || "unknown processor"}, ${threads === 1 ? "1 thread" : `${threads} threads`}`;

/** When Python is not there to ask. */
export const unmeasured: Processor = { product: () => null, measured: Promise.resolve(), close: async () => undefined };

/** Begins at once, beside everything else, and never throws: an estimate without it is only wider. */
export function measureProcessor(options: ProcessorOptions): Processor {
  const ending = new AbortController();
  let flops: number | null = null;
  const measured = measure(options, ending.signal)
    .then((found) => {
      flops = found;
    })
    .catch((error: unknown) => {
      if (!ending.signal.aborted)
        options.log.warn({ err: error }, "could not measure the processor; the first estimates assume a usual one");
    });
  const close = (): Promise<void> => {
    ending.abort();
    return measured;
  };
  return { product: () => flops, measured, close };
}

async function measure(
  { home, python, environment, name }: ProcessorOptions,
  signal: AbortSignal,
): Promise<number | null> {
  const ask = (args: string[]): Promise<string> => runPython(python, { args, environment, signal });
  const torch = (await ask(["-c", askTorch])).trim();
  const path = join(home, "machine.json");
  const kept = await readKept(path);
  if (kept?.machine === name && kept.torch === torch) return kept.flops;
  const probe = probeSchema.parse(JSON.parse(await ask(["-m", "fettle_trainer", "probe"])));
  // Training goes to the GPU, which this does not time.
  if (probe.devices.length > 0) return null;
  const flops = (probe.gflops[probe.fastest_dtype] ?? 0) * 1e9;
  const file = fileSchema.parse({ machine: name, torch, flops } satisfies Kept);
  await writeFile(`${path}.partial`, `${JSON.stringify(file)}\n`, { mode: 0o600, flush: true });
  await rename(`${path}.partial`, path);
  return flops;
}

async function readKept(path: string): Promise<Kept | null> {
  try {
    return fileSchema.parse(JSON.parse(await readFile(path, "utf8")));
  } catch {
    return null;
  }
}

function runPython(
  python: string,
  { args, environment, signal }: { args: string[]; environment: Readonly<Record<string, string>>; signal: AbortSignal },
): Promise<string> {
  return new Promise((resolve, reject) => {
    const options = { env: { ...environment }, timeout: timeoutMs, signal };
    const child = execFile(python, args, options, (error, stdout) =>
      error === null ? resolve(stdout) : reject(error),
    );
    try {
      if (child.pid !== undefined) setPriority(child.pid, 10);
    } catch {
      // Gone already, or not allowed here: it then runs at our own priority.
    }
  });
}
