/**
 * `npm run bench -- gpu [--json] [--python FILE] [--dry] [--only WORK,WORK] [--minutes 9]`: the trainer on a GPU beside TRL.
 *
 * `--python` names an interpreter with torch, transformers and peft for the GPU (and trl, datasets, liger-kernel for
 * the peers): the product's own environment has PyTorch for CPUs. Without it, `python3`. Where there is no npm,
 * `python3 bench/gpu/bench.py` is the same. `--dry` tries all of it on the CPU with tiny shapes.
 */
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";

const text = { type: "string" } as const;
const flag = { type: "boolean" } as const;
const { values } = parseArgs({
  options: { json: flag, dry: flag, only: text, minutes: text, python: text, help: { ...flag, short: "h" } },
});

async function main(): Promise<number> {
  if (values.help === true) {
    console.log(readFileSync(import.meta.filename, "utf8").split("*/")[0]);
    return 0;
  }
  const folder = mkdtempSync(join(tmpdir(), "fettle-gpu-"));
  const report = join(folder, "report.json");
  const given = [
    ...(values.dry === true ? ["--dry"] : []),
    ...(values.only === undefined ? [] : ["--only", values.only]),
    ...(values.minutes === undefined ? [] : ["--minutes", values.minutes]),
  ];
  const script = join(import.meta.dirname, "gpu", "bench.py");
  // Talk goes to stderr, so that stdout is one JSON document.
  const child = spawn(values.python ?? "python3", [script, "--json", report, ...given], {
    stdio: ["ignore", values.json === true ? 2 : 1, 2],
  });
  const code = await new Promise<number>((done, fail) => {
    child.on("error", fail);
    child.on("close", (status) => done(status ?? 1));
  });
  if (code === 0 && values.json === true) console.log(readFileSync(report, "utf8").trim());
  rmSync(folder, { recursive: true, force: true });
  return code;
}

process.exitCode = await main();
