/** The files of a database cluster: making one, and reading who serves it. */
import { spawn } from "node:child_process";
import { chownSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { rename } from "node:fs/promises";
import { join } from "node:path";
import { AppError } from "../domain/error.js";
import type { Account } from "./account.js";
import type { Binaries } from "./binaries.js";
import type { Place } from "./place.js";

export const superuser = "fettle";
/** Nothing of the server's own environment reaches the database. */
const environment = { PATH: "/usr/bin:/bin", LC_ALL: "C", TZ: "UTC" };

/** The account's ids for spawn; empty when the database runs as we do. */
export const asAccount = (
  account: Account | null,
): { uid?: number; gid?: number; env: typeof environment; cwd: string } => ({
  ...(account === null ? {} : { uid: account.uid, gid: account.gid }),
  env: environment,
  cwd: "/",
});

/**
 * Makes `place.data` unless it is there. initdb works in a folder beside it that is renamed when whole: a kill
 * in between leaves nothing half made, and of two processes one wins.
 */
export async function ensureCluster(place: Place, binaries: Binaries, account: Account | null): Promise<void> {
  if (existsSync(join(place.data, "PG_VERSION"))) return refuseOtherMajor(place, binaries);
  removeAbandoned(place);
  const making = join(place.folder, `making-${process.pid}`);
  const secret = join(place.folder, `secret-${process.pid}`);
  mkdirSync(making, { mode: 0o700 });
  writeFileSync(secret, place.password, { mode: 0o600 });
  if (account !== null) for (const path of [making, secret]) chownSync(path, account.uid, account.gid);
  try {
    await runInitdb({ binaries, account, making, secret });
    await rename(making, place.data);
  } catch (error) {
    if (!existsSync(join(place.data, "PG_VERSION"))) throw error;
  } finally {
    rmSync(secret, { force: true });
    rmSync(making, { recursive: true, force: true });
  }
}

function refuseOtherMajor(place: Place, binaries: Binaries): void {
  const major = readFileSync(join(place.data, "PG_VERSION"), "utf8").trim();
  if (major === binaries.major) return;
  throw new AppError(
    "database_unavailable",
    `The data in ${place.data} belongs to PostgreSQL ${major}, and the installed programs are ${binaries.major}. Install the Fettle version that made it, or dump and restore it with pg_dump.`,
  );
}

function removeAbandoned(place: Place): void {
  for (const name of readdirSync(place.folder)) {
    const pid = Number(/^(?:making|secret)-(\d+)$/.exec(name)?.[1]);
    if (pid > 0 && !processExists(pid)) rmSync(join(place.folder, name), { recursive: true, force: true });
  }
}

async function runInitdb(input: {
  binaries: Binaries;
  account: Account | null;
  making: string;
  secret: string;
}): Promise<void> {
  const args = [
    "-D",
    input.making,
    "-U",
    superuser,
    "-A",
    "scram-sha-256",
    `--pwfile=${input.secret}`,
    "-E",
    "UTF8",
    "--locale=C",
    "--no-instructions",
  ];
  const child = spawn(input.binaries.initdb, args, {
    ...asAccount(input.account),
    stdio: ["ignore", "ignore", "pipe"],
  });
  let stderr = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr = (stderr + text).slice(-4000);
  });
  const code = await new Promise<number | null>((resolve, reject) => child.on("error", reject).on("close", resolve));
  if (code === 0) return;
  const full = /No space left/.test(stderr);
  throw new AppError(
    full ? "disk_full" : "database_unavailable",
    `initdb could not make the database in ${input.making}: ${stderr.trim() || `exit ${code}`}`,
  );
}

export interface Postmaster {
  pid: number;
  port: number;
  ready: boolean;
}

/** What postmaster.pid says, when the process it names is alive and is a PostgreSQL. */
export function livePostmaster(place: Place): Postmaster | null {
  const text = readPidFile(place);
  if (text === null) return null;
  const lines = text.split("\n");
  const pid = Number(lines[0]);
  if (!(pid > 0) || !processExists(pid) || !looksLikePostgres(pid)) return null;
  return { pid, port: Number(lines[3]), ready: (lines[7] ?? "").trim() === "ready" };
}

/**
 * A postmaster.pid whose process is gone, or whose number now belongs to another program, would keep PostgreSQL
 * from starting. Call only when `livePostmaster` gave null.
 */
export function removeStalePidFile(place: Place): void {
  rmSync(join(place.data, "postmaster.pid"), { force: true });
}

function readPidFile(place: Place): string | null {
  try {
    return readFileSync(join(place.data, "postmaster.pid"), "utf8");
  } catch {
    return null;
  }
}

/** False also for a zombie: a process that ended, whose parent (a container's pid 1, say) does not collect it. */
export function processExists(pid: number): boolean {
  try {
    process.kill(pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EPERM") return false;
  }
  return process.platform !== "linux" || !isZombie(pid);
}

function isZombie(pid: number): boolean {
  try {
    return /\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, "utf8"));
  } catch {
    return true;
  }
}

function looksLikePostgres(pid: number): boolean {
  if (process.platform !== "linux") return true;
  try {
    return readFileSync(`/proc/${pid}/comm`, "utf8").trim() === "postgres";
  } catch {
    return false;
  }
}
