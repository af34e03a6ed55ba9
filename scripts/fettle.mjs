/**
 * The `fettle` command of a checkout: sets up what the command needs, then runs it in this process.
 *
 *   node scripts/fettle.mjs <command> [arguments]     the same as `npm run fettle -- <command> …`
 *
 * Plain Node up to the set-up; after it, TypeScript by tsx.
 */
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { report, setUp } from "./setup.mjs";
import { findPython, pythonReady } from "./setup-python.mjs";

const root = join(import.meta.dirname, "..");

/** Commands that train or run models here; the others talk to a server, and need Node packages alone. */
const needPython = new Set(["up", "demo"]);

function profileOf(argv) {
  if (argv.some((arg) => arg === "-h" || arg === "--help")) return "client";
  return needPython.has(argv.find((arg) => !arg.startsWith("-"))) ? "runtime" : "client";
}

/** Runs a TypeScript file as a process of its own and gives its exit code; signals reach it once. */
function runTypeScript(file, args, env) {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, ["--import", "tsx", file, ...args], {
      cwd: process.cwd(),
      env: { ...process.env, ...env },
      stdio: "inherit",
    });
    // Ctrl-C at a terminal reaches the whole process group; a signal sent to us alone is passed on.
    const passOn = (signal) => {
      if (signal !== "SIGINT" || !process.stdin.isTTY) child.kill(signal);
    };
    const signals = ["SIGINT", "SIGTERM", "SIGHUP"];
    for (const signal of signals) process.on(signal, passOn);
    child.on("error", reject);
    child.on("close", (code, signal) => {
      for (const one of signals) process.off(one, passOn);
      resolve(code ?? { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 }[signal] ?? 1);
    });
  });
}

const local = {
  version: JSON.parse(readFileSync(join(root, "package.json"), "utf8")).version,
  root,
  findPython: () => findPython(),
  pythonPackagesReady: () => pythonReady(root),
  up: ({ port }) =>
    runTypeScript(
      join(root, "packages", "server", "src", "main.ts"),
      [],
      port === undefined ? {} : { FETTLE_PORT: String(port) },
    ),
  demo: async (options) => {
    const { runDemo } = await import(pathToFileURL(join(root, "examples", "demo", "main.ts")).href);
    return runDemo(options);
  },
};

async function main(argv) {
  const json = argv.includes("--json");
  try {
    await setUp({ profile: profileOf(argv) });
  } catch (error) {
    return report(error, json);
  }
  const { register } = await import("tsx/esm/api");
  register();
  const { runCli } = await import("@fettle/client/cli");
  return runCli(argv, local);
}

process.exitCode = await main(process.argv.slice(2));
