/**
 * Writes trainer/requirements*.lock from trainer/requirements*.in: every package, every wheel's hash, for Linux and
 * macOS and each Python that is supported. Plain Node; the resolver (uv) is installed into a folder of its own.
 *
 *   node scripts/lock-python.mjs            keep what is pinned, add what is missing
 *   node scripts/lock-python.mjs --upgrade  take the newest releases that fit
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findPython } from "./setup-python.mjs";

const uvVersion = "0.13.9";
const root = join(import.meta.dirname, "..");
const trainer = join(root, "trainer");
/** Packages that only a CUDA build of torch needs: 2 to 3 GB that a CPU build must not pull in. */
const cudaOnly = /^(nvidia-|cuda-|triton$)/;
/** Where torch has wheels. */
const platforms = [
  "sys_platform == 'linux' and platform_machine == 'x86_64'",
  "sys_platform == 'linux' and platform_machine == 'aarch64'",
  "sys_platform == 'darwin' and platform_machine == 'arm64'",
];
const head = "# Written by scripts/lock-python.mjs; change the .in file, not this one.\n";

function run(command, args, options = {}) {
  return execFileSync(command, args, { stdio: ["ignore", "pipe", "inherit"], encoding: "utf8", ...options });
}

/** Leaves out a marker that only lists all of `platforms`. */
function shorten(spec) {
  const everywhere = platforms.every((platform) => platform.split(" and ").every((part) => spec.includes(part)));
  return everywhere && !/python|implementation/.test(spec.split(";")[1] ?? "") ? spec.split(" ;")[0] : spec;
}

/** One entry per package version: its `name==version ; marker` line, and its hashes. */
function parseLock(text) {
  const entries = [];
  for (const line of text.split("\n")) {
    if (/^[a-z0-9]/i.test(line)) entries.push({ spec: shorten(line.replace(/\s*\\$/, "")), hashes: [] });
    else if (line.includes("--hash="))
      entries.at(-1).hashes.push(
        line
          .trim()
          .replace(/\s*\\$/, "")
          .replace("--hash=", ""),
      );
  }
  return entries;
}

function print(entries) {
  return entries
    .map(({ spec, hashes }) => [spec, ...[...hashes].sort().map((hash) => `    --hash=${hash}`)].join(" \\\n"))
    .join("\n");
}

const nameOf = (entry) => entry.spec.split("==")[0].trim();

function compile({ uv, folder, input, keep, constraint }) {
  writeFileSync(join(folder, "pyproject.toml"), `[tool.uv]\nenvironments = ${JSON.stringify(platforms)}\n`);
  const out = join(folder, "out.txt");
  writeFileSync(out, keep);
  const args = ["pip", "compile", "--universal", "--python-version", "3.11", "--fork-strategy", "fewest"];
  args.push("--generate-hashes", "--no-emit-index-url", "--no-header", "--no-annotate", "--quiet", "-o", out);
  if (constraint !== undefined) args.push("-c", constraint);
  if (process.argv.includes("--upgrade")) args.push("--upgrade");
  run(uv, [...args, input], { cwd: folder });
  return parseLock(readFileSync(out, "utf8"));
}

function readOr(path, fallback) {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return fallback;
  }
}

function lockRuntime(uv, folder) {
  const input = join(trainer, "requirements.in");
  const [lock, cudaLock] = [join(trainer, "requirements.lock"), join(trainer, "requirements-cuda.lock")];
  const entries = compile({ uv, folder, input, keep: readOr(lock, "") + readOr(cudaLock, "") });
  const torch = entries.find((entry) => nameOf(entry) === "torch").spec;
  if (!readFileSync(join(trainer, "requirements-cpu.lock"), "utf8").includes(`${torch}+cpu `)) {
    throw new Error(
      `trainer/requirements-cpu.lock does not name ${torch}+cpu. Put the hashes of that release's CPU wheels there (\`pip hash FILE\`), or correct the pin in requirements.in.`,
    );
  }
  writeFileSync(lock, `${head}${print(entries.filter((entry) => !cudaOnly.test(nameOf(entry))))}\n`);
  writeFileSync(cudaLock, `${head}${print(entries.filter((entry) => cudaOnly.test(nameOf(entry))))}\n`);
  return entries;
}

/** What is installed beside the runtime's packages, at no other versions of them. */
function lockBeside(uv, folder, { name, known }) {
  const lock = join(trainer, `requirements-${name}.lock`);
  const constraint = join(folder, "known.txt");
  writeFileSync(constraint, `${known.map((entry) => entry.spec).join("\n")}\n`);
  const input = join(trainer, `requirements-${name}.in`);
  const entries = compile({ uv, folder, input, keep: readOr(lock, ""), constraint });
  const names = new Set(known.map((entry) => nameOf(entry)));
  const added = entries.filter((entry) => !names.has(nameOf(entry)));
  writeFileSync(lock, `${head}${print(added)}\n`);
  return [...known, ...added];
}

const folder = mkdtempSync(join(tmpdir(), "fettle-lock-"));
try {
  run(findPython().path, ["-m", "venv", join(folder, "venv")]);
  run(join(folder, "venv", "bin", "pip"), ["install", "--quiet", `uv==${uvVersion}`]);
  const uv = join(folder, "venv", "bin", "uv");
  const withOnnx = lockBeside(uv, folder, { name: "onnx", known: lockRuntime(uv, folder) });
  const withAll = lockBeside(uv, folder, { name: "qlora", known: withOnnx });
  lockBeside(uv, folder, { name: "dev", known: withAll });
  // With Triton, which a GPU's PyTorch brings and the proofs on a CPU need.
  const withoutTriton = withAll.filter((entry) => nameOf(entry) !== "triton");
  lockBeside(uv, folder, { name: "liger", known: withoutTriton });
} finally {
  rmSync(folder, { recursive: true, force: true });
}
