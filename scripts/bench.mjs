/**
 * `npm run bench -- NAME [--json] [...]`: measures, on this machine, now. With `--json` one JSON document on stdout;
 * talk goes to stderr. Everything after NAME is handed to bench/NAME.ts, and `-h` there says what it takes.
 */
import { spawn } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { report, setUp } from "./setup.mjs";

const root = join(import.meta.dirname, "..");

function names() {
  return readdirSync(join(root, "bench"))
    .filter((name) => name.endsWith(".ts"))
    .map((name) => name.slice(0, -3));
}

function run(args) {
  return new Promise((done, fail) => {
    const child = spawn(process.execPath, args, { cwd: root, stdio: "inherit" });
    for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => child.kill(signal));
    child.on("error", fail);
    child.on("close", (code) => done(code ?? 1));
  });
}

async function main([name = "", ...rest]) {
  if (!/^[a-z]+$/.test(name) || !existsSync(join(root, "bench", `${name}.ts`))) {
    console.error(
      `error: ${name === "" ? "no benchmark was named" : `there is no benchmark ${name}`}; there are ${names().join(", ")}.`,
    );
    return 2;
  }
  const at = rest.indexOf("--no-setup");
  if (at === -1) await setUp({ profile: "test" });
  else rest.splice(at, 1);
  return run(["--import", "tsx", join("bench", `${name}.ts`), ...rest]);
}

process.exitCode = await main(process.argv.slice(2)).catch((error) => report(error, false));
