/** The trainer that ships, and a tiny random model to give it. */
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dirname, "..");
const python = join(root, ".venv", "bin", "python");
const paths = [join(root, "trainer", "src"), join(root, "trainer", "tests")].join(":");

export const realTrainer = {
  command: [python, "-m", "fettle_trainer"],
  environment: { PYTHONPATH: paths, HF_HUB_OFFLINE: "1" },
};

/** Written to `folder`, with a tokenizer of a few hundred words. */
export function makeTinyModel(kind: "decoder" | "encoder", folder: string): void {
  if (!existsSync(python)) throw new Error(`${python} is missing: run npm test once, it sets it up`);
  execFileSync(python, ["-c", `import sys, pathlib, tiny; tiny.make_${kind}(pathlib.Path(sys.argv[1]))`, folder], {
    env: { ...process.env, ...realTrainer.environment },
    stdio: "inherit",
  });
}

/** Questions with one of two answers. */
export const answeredRows = Array.from({ length: 40 }, (_, n) => ({
  messages: [
    { role: "user", content: `question ${n} about billing and login` },
    { role: "assistant", content: n % 2 ? "refund the invoice" : "reset the password" },
  ],
}));

/** As ingest writes them. */
export const canonical = (rows: readonly object[]): string =>
  rows.map((row, at) => `${JSON.stringify({ line: at + 1, ...row })}\n`).join("");
