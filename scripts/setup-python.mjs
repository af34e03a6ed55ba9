/** Finds a fit Python and makes `.venv` from the hash-locked requirements. Plain Node: runs before node_modules exists. */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  accessSync,
  constants,
  existsSync,
  lstatSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { delimiter, isAbsolute, join } from "node:path";
import { SetupError } from "./setup-progress.mjs";

const oldest = [3, 11];
/** torch has no wheels for a Python newer than this. */
const newest = [3, 14];
const names = ["python3.13", "python3.12", "python3.11", "python3", "python"];
const probe =
  "import sys, importlib.util as u; print(*sys.version_info[:3], int(u.find_spec('ensurepip') is not None))";

const howToInstall =
  "Debian or Ubuntu: `sudo apt-get install python3.11 python3.11-venv`; Fedora: `sudo dnf install python3.11`; macOS: `brew install python@3.13`.";
const range = `${oldest.join(".")} to ${newest.join(".")}`;

/** Full path of a program on PATH (or of a path itself), or null. */
function which(name, env) {
  const places =
    isAbsolute(name) || name.includes("/")
      ? [name]
      : (env.PATH ?? "").split(delimiter).map((folder) => join(folder, name));
  for (const place of places) {
    try {
      accessSync(place, constants.X_OK);
      if (lstatSync(place, { throwIfNoEntry: false }) !== undefined) return place;
    } catch {
      // not here: the next place
    }
  }
  return null;
}

/** Version and whether it can make virtual environments; null when it does not run. */
function inspect(path) {
  try {
    const out = execFileSync(path, ["-c", probe], {
      encoding: "utf8",
      timeout: 20_000,
      stdio: ["ignore", "pipe", "ignore"],
    });
    const [major, minor, patch, venv] = out.trim().split(" ").map(Number);
    if (![major, minor, patch].every(Number.isInteger)) return null;
    return { path, major, minor, version: `${major}.${minor}.${patch}`, venv: venv === 1 };
  } catch {
    return null;
  }
}

const fits = ({ major, minor }) => major === 3 && minor >= oldest[1] && minor <= newest[1];

/**
 * The Python to use: FETTLE_PYTHON when set, else the first that fits of python3.13, 3.12, 3.11, python3, python.
 * Throws SetupError `python_missing` or `python_unsupported`.
 */
export function findPython(env = process.env) {
  const asked = env.FETTLE_PYTHON;
  const candidates = asked ? [asked] : names;
  const source = asked ? `FETTLE_PYTHON names ${asked}` : `looked for ${names.join(", ")} on PATH`;
  const found = candidates
    .map((name) => which(name, env))
    .filter((path) => path !== null)
    .map(inspect)
    .filter((one) => one !== null);
  if (found.length === 0) {
    throw new SetupError(
      "python_missing",
      asked
        ? `No Python was found: ${source}, and no program that answers as Python is there. Fettle needs Python ${range}. Point FETTLE_PYTHON at one, or unset it to search PATH.`
        : `No Python was found: ${source}. Fettle needs Python ${range} to train and run models. ${howToInstall} Or set FETTLE_PYTHON to the path of one.`,
    );
  }
  const fit = found.find((one) => fits(one) && one.venv);
  if (fit !== undefined) return fit;
  const bare = found.find(fits);
  if (bare !== undefined) {
    throw new SetupError(
      "python_unsupported",
      `Python ${bare.version} at ${bare.path} cannot make virtual environments: its module ensurepip is missing. Debian or Ubuntu: \`sudo apt-get install python${bare.major}.${bare.minor}-venv\`. Or point FETTLE_PYTHON at another Python ${range}.`,
    );
  }
  const seen = found.map((one) => `${one.version} at ${one.path}`).join(", ");
  const age = found.every((one) => one.major > 3 || one.minor > newest[1]) ? "new" : "old";
  throw new SetupError(
    "python_unsupported",
    `The Python found is too ${age}: ${seen} (${source}). Fettle needs Python ${range}. ${howToInstall} Or set FETTLE_PYTHON to the path of one.`,
  );
}

const sha256 = (path) => createHash("sha256").update(readFileSync(path)).digest("hex");

/** What the environment was made of; null when there is none or it was left half-made. */
function readStamp(path) {
  try {
    return JSON.parse(readFileSync(path, "utf8"));
  } catch {
    return null;
  }
}

/** "13.0" for a CUDA build of torch, null for a CPU one. Read from its file: importing would fail before its libraries are there. */
export function torchCuda(venv) {
  const lib = join(venv, "lib");
  for (const folder of existsSync(lib) ? readdirSync(lib) : []) {
    const file = join(lib, folder, "site-packages", "torch", "version.py");
    if (existsSync(file))
      return /^cuda\s*(?::[^=]*)?=\s*['"]([^'"]+)['"]/m.exec(readFileSync(file, "utf8"))?.[1] ?? null;
  }
  return null;
}

/** True when `.venv` is a link of the user's, or holds what the lock files say. Changes nothing. */
export function pythonReady(root) {
  const venv = join(root, ".venv");
  if (lstatSync(venv, { throwIfNoEntry: false })?.isSymbolicLink()) return existsSync(join(venv, "bin", "python"));
  const stamp = existsSync(join(venv, "bin", "python")) ? readStamp(join(venv, "fettle-stamp.json")) : null;
  return stamp !== null && !stamp.installing && stamp.runtime === sha256(join(root, "trainer", "requirements.lock"));
}

/** True when an NVIDIA driver is loaded or its tools are on PATH: a CUDA build of torch is then worth its size. */
function hasNvidia(env = process.env) {
  return existsSync("/proc/driver/nvidia/version") || existsSync("/dev/nvidiactl") || which("nvidia-smi", env) !== null;
}

/** What goes into the environment, in this order. `optional`: not being found is no failure. */
function stagesOf({ root, venv, dev, onnx, qlora, liger }) {
  const lock = (name) => join(root, "trainer", name);
  return [
    {
      key: "cpu",
      label: "torch for CPU",
      lock: lock("requirements-cpu.lock"),
      optional: true,
      wanted: () => process.platform === "linux" && !hasNvidia(),
    },
    { key: "runtime", label: "Python packages", lock: lock("requirements.lock"), wanted: () => true },
    {
      key: "cuda",
      label: "CUDA libraries",
      lock: lock("requirements-cuda.lock"),
      wanted: () => torchCuda(venv) !== null,
    },
    { key: "onnx", label: "ONNX packages", lock: lock("requirements-onnx.lock"), wanted: () => onnx },
    { key: "qlora", label: "QLoRA packages", lock: lock("requirements-qlora.lock"), wanted: () => qlora },
    { key: "liger", label: "Liger's kernels", lock: lock("requirements-liger.lock"), wanted: () => liger },
    { key: "dev", label: "Python packages for tests", lock: lock("requirements-dev.lock"), wanted: () => dev },
  ];
}

/**
 * Makes `.venv` hold what the locks say; `dev` adds the packages of tests and checks, `onnx` those of ONNX exports,
 * `qlora` those of the method qlora, `liger` Liger's kernels; these three stay up to date once they are there. A link named `.venv` is the
 * user's own environment and is left as it is. An environment whose making was cut off is made anew: pip keeps
 * finished downloads, and a half-copied package would pass for an installed one.
 */
export async function setUpPython({ root, dev, onnx = false, qlora = false, liger = false, progress }) {
  const venv = join(root, ".venv");
  const python = join(venv, "bin", "python");
  const stampPath = join(venv, "fettle-stamp.json");
  if (lstatSync(venv, { throwIfNoEntry: false })?.isSymbolicLink()) return { changed: false, python };
  let stamp = existsSync(python) ? readStamp(stampPath) : null;
  let changed = false;
  const isThere = (key) => stamp?.[key] !== undefined;
  const optional = {
    onnx: onnx || isThere("onnx"),
    qlora: qlora || isThere("qlora"),
    liger: liger || isThere("liger"),
  };
  for (const stage of stagesOf({ root, venv, dev, ...optional })) {
    const hash = sha256(stage.lock);
    if (stamp?.[stage.key] === hash || !stage.wanted()) continue;
    // The CPU build is settled before the other packages come: a later change of its file alone changes nothing.
    if (stage.key === "cpu" && stamp?.runtime !== undefined && !stamp.installing) continue;
    if (stamp === null || stamp.installing) stamp = await makeEnvironment({ venv, stampPath, progress });
    writeFileSync(stampPath, JSON.stringify({ ...stamp, installing: stage.key }));
    await install({ venv, stage, progress });
    stamp = { ...stamp, [stage.key]: hash };
    writeFileSync(stampPath, JSON.stringify(stamp));
    changed = true;
  }
  if (changed) await compile({ venv, python, progress });
  return { changed, python };
}

async function makeEnvironment({ venv, stampPath, progress }) {
  const base = findPython();
  await progress.step(`Python ${base.version} environment`, async (tools) => {
    rmSync(venv, { recursive: true, force: true });
    await tools.run(base.path, ["-m", "venv", venv], {
      fix: `Check that ${venv} can be written and that \`${base.path} -m venv\` works.`,
    });
  });
  const stamp = { python: base.version };
  writeFileSync(stampPath, JSON.stringify(stamp));
  return stamp;
}

/** On all cores, which pip does not: without it each process that imports torch and transformers starts twice as slowly. */
async function compile({ venv, python, progress }) {
  const work = async (tools) => {
    const args = ["-m", "compileall", "-q", "-j", "0", "-x", "/tests?/|/testing/", join(venv, "lib")];
    // Some packages ship templates that are no valid Python: those stay as they are.
    await tools.run(python, args, { fix: "Run the same command again.", tolerate: true });
  };
  await progress.step("Compiling Python packages", work, venv);
}

/** "torch-2.13.0-cp311-….whl (526.3 MB)" of pip's talk as "torch 2.13.0 (526.3 MB)". */
function pipDetail(line) {
  if (line.startsWith("Installing collected packages")) return "copying into the environment";
  const [, file, size] = /^\s*(?:Downloading|Using cached|Processing) (\S+)(?: \((\d[^)]*)\))?/.exec(line) ?? [];
  if (file === undefined) return undefined;
  return `${file.split("/").at(-1).split("-").slice(0, 2).join(" ")}${size ? ` (${size})` : ""}`;
}

async function install({ venv, stage, progress }) {
  const args = [
    "-m",
    "pip",
    "install",
    "--require-hashes",
    "--no-deps",
    "--only-binary",
    ":all:",
    "--no-input",
    "--no-compile",
    "--progress-bar",
    "off",
  ];
  const work = async (tools) => {
    const done = await tools.run(
      join(venv, "bin", "python"),
      [...args, "--disable-pip-version-check", "-r", stage.lock],
      {
        fix: "Check the network and pip's own settings (`pip config list`), then run the same command again: finished downloads are kept.",
        detail: pipDetail,
        tolerate: stage.optional,
      },
    );
    return done.code === 0 ? undefined : "none in reach";
  };
  await progress.step(stage.label, work, venv);
}
