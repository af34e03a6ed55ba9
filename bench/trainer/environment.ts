/** Where the two sides run: our own .venv, and an environment of the peers' locked packages under .cache/. */
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { cpus, totalmem } from "node:os";
import { join } from "node:path";

export const root = join(import.meta.dirname, "..", "..");
export const ourPython = join(root, ".venv", "bin", "python");
export const cache = join(root, ".cache", "bench");
const venv = join(cache, "venv");

export const say = (text: string): boolean => process.stderr.write(`${text}\n`);

/** Runs to the end; what it says goes to stderr, or is returned when `capture`. Throws when it fails. */
export function run(
  command: string,
  args: string[],
  options: { env?: Record<string, string>; capture?: boolean } = {},
): Promise<string> {
  return new Promise((done, fail) => {
    const child = spawn(command, args, {
      cwd: root,
      env: { ...process.env, ...options.env },
      stdio: ["ignore", options.capture === true ? "pipe" : 2, "inherit"],
    });
    let output = "";
    child.stdout?.setEncoding("utf8").on("data", (text: string) => {
      output += text;
    });
    child.on("error", fail);
    child.on("close", (code) =>
      code === 0
        ? done(output)
        : fail(new Error(`${command} ${args.slice(0, 3).join(" ")} ended with exit code ${code}`)),
    );
  });
}

const locks = ["trainer/requirements-cpu.lock", "bench/requirements.lock"].map((path) => join(root, path));

/** Python of the peers' environment, made when it is missing or its lock has changed. */
export async function peersPython(): Promise<string> {
  const python = join(venv, "bin", "python");
  const stamp = join(venv, "stamp");
  const wanted = createHash("sha256");
  for (const lock of locks) wanted.update(readFileSync(lock));
  const hash = wanted.digest("hex");
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === hash) return python;
  say("making the peers' environment (about 1 GB) ...");
  rmSync(venv, { recursive: true, force: true });
  mkdirSync(cache, { recursive: true });
  await run(ourPython, ["-m", "venv", venv]);
  const install = ["-m", "pip", "install", "--require-hashes", "--no-deps", "--only-binary", ":all:", "--quiet", "-r"];
  // torch's CPU build where the index has it: the lock of all packages then finds torch already there.
  await run(python, [...install, locks[0] ?? ""]).catch(() => say("no CPU build of torch here: taking the lock's own"));
  await run(python, [...install, locks[1] ?? ""]);
  const cuda = await run(
    python,
    [
      "-c",
      "import importlib.util as u, re; p = u.find_spec('torch').origin.replace('__init__', 'version'); print(bool(re.search(r\"^cuda.*= *'\", open(p).read(), re.M)))",
    ],
    { capture: true },
  );
  if (cuda.trim() === "True") await run(python, [...install, join(root, "trainer/requirements-cuda.lock")]);
  writeFileSync(stamp, hash);
  return python;
}

export interface Machine {
  cpu: string;
  threads: number;
  memory_bytes: number;
  /** Of matrix products, measured now. */
  gflops: { float32: number; bfloat16: number };
}

export async function describeMachine(threads: number): Promise<Machine> {
  const out = await run(ourPython, [join(root, "bench/trainer/roofline.py"), String(threads)], { capture: true });
  const { gflops } = JSON.parse(out) as Pick<Machine, "gflops">;
  return { cpu: cpus()[0]?.model ?? "unknown", threads, memory_bytes: totalmem(), gflops };
}
