/**
 * The `fettle` command of a checkout: sets up what the command needs, then runs it in this process.
 *
 *   node scripts/fettle.mjs <command> [arguments]     the same as `npm run fettle -- <command> …`
 *
 * Plain Node up to the set-up; after it, TypeScript by tsx.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { report, setUp } from "./setup.mjs";
import { SetupError } from "./setup-progress.mjs";
import { findPython, pythonReady } from "./setup-python.mjs";

const root = join(import.meta.dirname, "..");

/** Commands that train or run models here; the others talk to a server, and need Node packages alone. */
const needPython = new Set(["up", "demo"]);

function profileOf(argv) {
  if (argv.some((arg) => arg === "-h" || arg === "--help")) return "client";
  return needPython.has(argv.find((arg) => !arg.startsWith("-"))) ? "runtime" : "client";
}

/**
 * Runs the server in this process until SIGINT or SIGTERM; a second signal ends it at once. `python` is the one of the
 * set-up: FETTLE_PYTHON may name the interpreter that `.venv` was made from, which has no packages.
 */
async function up({ port, json }, python) {
  const { startServer } = await import("@fettle/server");
  const env = { ...process.env, FETTLE_PYTHON: python, ...(port === undefined ? {} : { FETTLE_PORT: String(port) }) };
  process.on("unhandledRejection", (error) => process.stderr.write(`${error?.stack ?? error}\n`));
  let server;
  try {
    server = await startServer({ env, cwd: process.cwd() });
  } catch (error) {
    if (typeof error?.code !== "string") throw error;
    return report(new SetupError(error.code, error.message), json);
  }
  process.stdout.write(json ? `${JSON.stringify(readyDocument(server))}\n` : readyText(server));
  await new Promise((resolve) => {
    const end = () => {
      process.on("SIGINT", () => process.exit(130)).on("SIGTERM", () => process.exit(143));
      resolve();
    };
    process.once("SIGINT", end).once("SIGTERM", end).once("SIGHUP", end);
  });
  await server.close();
  // Anything that still holds the event loop is none of ours to wait for.
  process.exit(0);
}

async function demo(options, python) {
  const { runDemo } = await import(pathToFileURL(join(root, "examples", "demo", "main.ts")).href);
  return runDemo({ ...options, env: process.env, cwd: process.cwd(), python });
}

const readyDocument = ({ url, config, newAdminKey }) => ({
  url,
  pid: process.pid,
  home: config.home,
  admin_key: newAdminKey,
});

function readyText({ url, config, newAdminKey }) {
  const lines = [
    `Fettle ${local.version} is ready: ${url}`,
    `  OpenAI clients   OPENAI_BASE_URL=${url}/v1`,
    `  data folder      ${config.home}`,
  ];
  if (newAdminKey !== null)
    lines.push(`  admin key        ${newAdminKey}   (shown this once; kept in ${join(config.home, "admin_key")})`);
  return `${lines.join("\n")}\n`;
}

const local = {
  version: JSON.parse(readFileSync(join(root, "package.json"), "utf8")).version,
  root,
  findPython: () => findPython(),
  pythonPackagesReady: () => pythonReady(root),
};

async function main(argv) {
  const json = argv.includes("--json");
  let ready;
  try {
    ready = await setUp({ profile: profileOf(argv) });
  } catch (error) {
    return report(error, json);
  }
  const { register } = await import("tsx/esm/api");
  register();
  const { runCli } = await import("@fettle/client/cli");
  return runCli(argv, {
    ...local,
    up: (options) => up(options, ready.python),
    demo: (options) => demo(options, ready.python),
  });
}

process.exitCode = await main(process.argv.slice(2));
