/** Whether this machine can keep a base in 4 bits, as the trainer's `probe` says. */
import { execFile } from "node:child_process";
import { z } from "zod";

const probeSchema = z.strictObject({ four_bits: z.string().nullable() });
const timeoutMs = 60_000;

export interface FourBitsOptions {
  python: string;
  /** Of a trainer. */
  environment: Readonly<Record<string, string>>;
}

/**
 * The lack in words, or null. Asked each time until there is none: a package that was missing can be installed while
 * the server runs. Throws when Python gives no answer.
 */
export function fourBitsOf({ python, environment }: FourBitsOptions): () => Promise<string | null> {
  let isThere = false;
  return async () => {
    if (isThere) return null;
    const { four_bits: lack } = probeSchema.parse(JSON.parse(await ask(python, environment)));
    isThere = lack === null;
    return lack;
  };
}

const ask = (python: string, environment: Readonly<Record<string, string>>): Promise<string> =>
  new Promise((resolve, reject) => {
    const options = { env: { ...environment }, timeout: timeoutMs };
    execFile(python, ["-m", "fettle_trainer", "probe", "--four-bits"], options, (error, stdout) =>
      error === null ? resolve(stdout) : reject(error),
    );
  });
