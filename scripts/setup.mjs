/**
 * Makes a fresh clone able to run: Node packages, then the Python environment. Plain Node without dependencies.
 *
 *   node scripts/setup.mjs                     what the server and the trainer need
 *   node scripts/setup.mjs --profile test      and what tests and checks need
 *   node scripts/setup.mjs --onnx              and what exporting as ONNX needs, 125 MB
 *   node scripts/setup.mjs --qlora             and what the method qlora needs, 125 MB
 *   node scripts/setup.mjs --liger             and Liger's kernels, for other layers than ours on a GPU (docs/gpu.md)
 *   node scripts/setup.mjs --json              one JSON document on stdout; talk stays on stderr
 *
 * A second run sees its stamps and ends at once; one that was killed goes on; several at once take turns.
 */
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { checkNode, setUpNode } from "./setup-node.mjs";
import { createProgress, SetupError, withLock } from "./setup-progress.mjs";
import { setUpPython } from "./setup-python.mjs";

const repository = join(import.meta.dirname, "..");

/** `client` is the Node packages alone; `runtime` adds Python; `test` adds what tests need. */
export const profiles = ["client", "runtime", "test"];

/**
 * Sets up what `profile` needs; `onnx` adds what exporting as ONNX needs, which `test` has anyway, `qlora` what the
 * method qlora needs, `liger` Liger's kernels. Returns what changed and the Python to use. Throws SetupError
 * `node_unsupported`, `python_missing`, `python_unsupported`, `setup_failed` or `interrupted`.
 */
export async function setUp({
  profile = "runtime",
  onnx = false,
  qlora = false,
  liger = false,
  root = repository,
  progress = createProgress(),
} = {}) {
  checkNode();
  const work = async () => {
    const node = await setUpNode({ root, progress });
    const wanted = { dev: profile === "test", onnx: onnx || profile === "test", qlora, liger };
    const python = profile === "client" ? null : await setUpPython({ root, ...wanted, progress });
    return { changed: node.changed || python?.changed === true, python: python?.python ?? null };
  };
  const onWait = (holder) =>
    progress.say(`  Another set-up of this folder is at work (process ${holder}); waiting for it.`);
  return withLock(join(root, ".cache", "setup.lock"), { onWait, work });
}

/** Prints a failed set-up; anything else is a fault of ours and keeps its stack. Returns the exit code. */
export function report(error, json) {
  if (!(error instanceof SetupError)) throw error;
  process.stderr.write(`error (${error.code}): ${error.message}\n`);
  if (json) process.stdout.write(`${JSON.stringify({ error: { code: error.code, message: error.message } })}\n`);
  return error.code === "interrupted" ? 130 : 1;
}

async function main(argv) {
  const json = argv.includes("--json");
  const at = argv.indexOf("--profile");
  const profile = at === -1 ? "runtime" : argv[at + 1];
  if (!profiles.includes(profile)) {
    process.stderr.write(`error: --profile is ${profile ?? "empty"}; expected one of ${profiles.join(", ")}.\n`);
    return 2;
  }
  const start = Date.now();
  try {
    const [onnx, qlora, liger] = ["--onnx", "--qlora", "--liger"].map((flag) => argv.includes(flag));
    const done = await setUp({ profile, onnx, qlora, liger });
    if (json) process.stdout.write(`${JSON.stringify({ ...done, profile, seconds: (Date.now() - start) / 1000 })}\n`);
    return 0;
  } catch (error) {
    return report(error, json);
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) process.exitCode = await main(process.argv.slice(2));
