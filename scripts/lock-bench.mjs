/**
 * Writes bench/requirements.lock from bench/requirements.in: every package with the hash of every wheel. CUDA's
 * libraries are left out, they are those of trainer/requirements-cuda.lock. The resolver (uv) gets a folder of its own.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findPython } from "./setup-python.mjs";

const root = join(import.meta.dirname, "..");
const platforms = [
  "sys_platform == 'linux' and platform_machine == 'x86_64'",
  "sys_platform == 'linux' and platform_machine == 'aarch64'",
  "sys_platform == 'darwin' and platform_machine == 'arm64'",
];
const run = (command, args, cwd) => execFileSync(command, args, { cwd, stdio: ["ignore", "pipe", "inherit"] });

const folder = mkdtempSync(join(tmpdir(), "fettle-lock-"));
try {
  run(findPython().path, ["-m", "venv", join(folder, "venv")]);
  run(join(folder, "venv/bin/pip"), ["install", "--quiet", "uv==0.13.9"]);
  writeFileSync(join(folder, "pyproject.toml"), `[tool.uv]\nenvironments = ${JSON.stringify(platforms)}\n`);
  const options = ["--universal", "--python-version", "3.11", "--fork-strategy", "fewest", "--generate-hashes"];
  const quiet = ["--no-emit-index-url", "--no-header", "--no-annotate", "--quiet", "-o", "out.txt"];
  const input = join(root, "bench/requirements.in");
  run(join(folder, "venv/bin/uv"), ["pip", "compile", ...options, ...quiet, input], folder);
  const blocks = readFileSync(join(folder, "out.txt"), "utf8").split(/\n(?=\S)/);
  const kept = blocks.filter((block) => !/^(nvidia-|cuda-|triton=)/.test(block)).map((block) => block.trimEnd());
  const head = "# Written by scripts/lock-bench.mjs; change the .in file, not this one.";
  writeFileSync(join(root, "bench/requirements.lock"), `${[head, ...kept].join("\n")}\n`);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
