/** The only file of the command line that reads environment variables: where the server is, and the key for it. */
import { readFileSync } from "node:fs";
import { homedir } from "node:os";
import { join, resolve } from "node:path";
import { CliError, exitCodes } from "./exit.js";

export interface Environment {
  /** The data folder, absolute. */
  home: string;
  port: number;
  url: string | null;
  apiKey: string | null;
  adminKey: string | null;
  databaseUrl: string | null;
  /** Output is read by a machine: nothing is redrawn. */
  ci: boolean;
}

export function readEnvironment(env: NodeJS.ProcessEnv = process.env, cwd: string = process.cwd()): Environment {
  const value = (name: string): string | null => env[name]?.trim() || null;
  const home = value("FETTLE_HOME") ?? "~/.fettle";
  return {
    home: resolve(cwd, home.replace(/^~(?=\/|$)/, homedir())),
    port: Number(value("FETTLE_PORT") ?? 4141),
    url: value("FETTLE_URL"),
    apiKey: value("FETTLE_API_KEY"),
    adminKey: value("FETTLE_ADMIN_KEY"),
    databaseUrl: value("DATABASE_URL"),
    ci: value("CI") !== null && value("CI") !== "false",
  };
}

export interface Target {
  baseUrl: string;
  apiKey: string;
}

/** FETTLE_URL, else the server of this data folder, else the usual address. */
export function serverUrl(environment: Environment): string {
  return environment.url ?? urlOfHome(environment.home) ?? `http://127.0.0.1:${environment.port}`;
}

/**
 * Address and key. The data folder's admin key goes to this machine only: with a FETTLE_URL elsewhere,
 * FETTLE_API_KEY must be given. Throws CliError `missing_api_key`.
 */
export function findServer(environment: Environment): Target {
  const baseUrl = serverUrl(environment);
  const local = isLoopback(baseUrl);
  const apiKey =
    environment.apiKey ?? (local ? (environment.adminKey ?? readText(join(environment.home, "admin_key"))) : null);
  if (apiKey !== null) return { baseUrl, apiKey };
  const where = local ? ` and ${join(environment.home, "admin_key")} holds none` : "";
  const hint = local
    ? "Start the server once (`fettle up`), or set FETTLE_API_KEY."
    : "Set FETTLE_API_KEY to a key of that server (`fettle keys create NAME` makes one there).";
  throw new CliError(
    "missing_api_key",
    `No API key for ${baseUrl}: FETTLE_API_KEY is not set${where}. ${hint}`,
    exitCodes.auth,
  );
}

function urlOfHome(home: string): string | null {
  const text = readText(join(home, "server.json"));
  if (text === null) return null;
  try {
    const { url } = JSON.parse(text) as { url?: unknown };
    return typeof url === "string" ? url : null;
  } catch {
    return null;
  }
}

function readText(path: string): string | null {
  try {
    return readFileSync(path, "utf8").trim() || null;
  } catch {
    return null;
  }
}

function isLoopback(url: string): boolean {
  if (!URL.canParse(url))
    throw new CliError(
      "usage",
      `FETTLE_URL is "${url}": expected an address such as http://127.0.0.1:4141.`,
      exitCodes.usage,
    );
  const { hostname } = new URL(url);
  return hostname === "localhost" || hostname === "[::1]" || /^127\./.test(hostname);
}
