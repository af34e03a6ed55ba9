/** Runs a module of the trainer and reads the JSON document it prints. */
import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

export interface Python {
  python: string;
  /** Environment with PYTHONPATH to the trainer's source. */
  env: NodeJS.ProcessEnv;
}

const maxBuffer = 64 * 1024 * 1024;

/** Throws an Error with the end of what the module wrote to stderr. */
export async function runModule({ python, env }: Python, module: string, args: readonly string[]): Promise<unknown> {
  try {
    const { stdout } = await promisify(execFile)(python, ["-m", module, ...args], { env, maxBuffer });
    return JSON.parse(stdout);
  } catch (cause) {
    const said =
      typeof cause === "object" && cause !== null && "stderr" in cause
        ? String(cause.stderr).trim().slice(-1500)
        : String(cause);
    throw new Error(`python -m ${module} ${args[0] ?? ""} failed: ${said}`, { cause });
  }
}

/** Hands rows to `use` as JSON lines files, which are gone afterwards. */
export async function withRowFiles<T>(
  files: readonly (readonly object[])[],
  use: (...paths: string[]) => Promise<T>,
): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), "fettle-demo-"));
  try {
    const paths = files.map((_, number) => join(folder, `${number}.jsonl`));
    await Promise.all(files.map((rows, number) => writeFile(paths[number] ?? "", toJsonLines(rows))));
    return await use(...paths);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

export const toJsonLines = (rows: readonly object[]): string => rows.map((row) => `${JSON.stringify(row)}\n`).join("");
