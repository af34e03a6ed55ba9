/** A fresh clone in a temporary folder, with programs named python and npm that note how they are called. */
import { type ChildProcess, spawn } from "node:child_process";
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const root = join(import.meta.dirname, "..", "..");

export interface Ended {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
  ms: number;
}

export interface Clone {
  folder: string;
  /** The only folder on PATH. */
  bin: string;
  /** A Python of this version under this name; it makes environments and notes each call. */
  python(name: string, options?: { version?: string; venv?: boolean; cuda?: string }): void;
  program(name: string, lines: string[]): void;
  /** One line a call: program, arguments. */
  calls(): string[];
  start(args?: string[], env?: Record<string, string>): { child: ChildProcess; ended: Promise<Ended> };
  setUp(args?: string[], env?: Record<string, string>): Promise<Ended>;
  remove(): void;
}

/** `npm: true` makes node_modules wanting; else it is a link, which set-up leaves alone. */
export function clone({ npm = false }: { npm?: boolean } = {}): Clone {
  const folder = mkdtempSync(join(tmpdir(), "fettle-clone-"));
  const bin = join(folder, "bin");
  const log = join(folder, "calls.log");
  for (const name of ["bin", "scripts", "trainer"]) mkdirSync(join(folder, name));
  for (const name of ["setup", "setup-node", "setup-python", "setup-progress"]) {
    cpSync(join(root, "scripts", `${name}.mjs`), join(folder, "scripts", `${name}.mjs`));
  }
  for (const name of ["", "-cpu", "-cuda", "-onnx", "-qlora", "-liger", "-dev"])
    writeFileSync(join(folder, "trainer", `requirements${name}.lock`), `one==1${name}\n`);
  writeFileSync(join(folder, "package.json"), "{}");
  writeFileSync(
    join(folder, "package-lock.json"),
    JSON.stringify({ packages: { "node_modules/one": { version: "1.0.0", integrity: "sha512-a" } } }),
  );
  if (!npm) {
    mkdirSync(join(folder, "modules"));
    symlinkSync(join(folder, "modules"), join(folder, "node_modules"));
  }
  const program = (name: string, lines: string[]): void => {
    const path = join(bin, name);
    writeFileSync(path, ["#!/bin/sh", `echo "${name} $*" >> ${log}`, ...lines, ""].join("\n"));
    chmodSync(path, 0o755);
  };
  const start: Clone["start"] = (args = [], env = {}) => {
    const begun = Date.now();
    const child = spawn(process.execPath, [join(folder, "scripts", "setup.mjs"), ...args], {
      env: { PATH: bin, ...env },
      stdio: ["ignore", "pipe", "pipe"],
      detached: true,
    });
    const said = { stdout: "", stderr: "" };
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      said.stdout += text;
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      said.stderr += text;
    });
    const ended = new Promise<Ended>((resolve) =>
      child.on("close", (code, signal) => resolve({ code, signal, ...said, ms: Date.now() - begun })),
    );
    return { child, ended };
  };
  return {
    folder,
    bin,
    program,
    python(name, { version = "3.12.4", venv = true, cuda } = {}) {
      const torch = `"$3/lib/python3.12/site-packages/torch"`;
      program(name, [
        `case "$*" in`,
        `  "-c import sys"*) echo "${version.replaceAll(".", " ")} ${venv ? 1 : 0}" ;;`,
        `  "-m venv "*) /bin/mkdir -p "$3/bin" ${torch} && /bin/cp "$0" "$3/bin/python" && echo "cuda: Optional[str] = ${cuda === undefined ? "None" : `'${cuda}'`}" > ${torch}/version.py ;;`,
        `  *requirements-cpu.lock) echo "ERROR: No matching distribution found for torch==2.13.0+cpu"; exit 1 ;;`,
        `  *requirements.lock) if [ -n "$PIP_HANGS" ]; then exec /bin/sleep 60; fi; if [ -n "$PIP_FAILS" ]; then echo "ERROR: the network is gone"; exit 1; fi ;;`,
        `esac`,
      ]);
    },
    calls: () => (existsSync(log) ? readFileSync(log, "utf8").trim().split("\n") : []),
    start,
    setUp: (args, env) => start(args, env).ended,
    remove: () => rmSync(folder, { recursive: true, force: true }),
  };
}
