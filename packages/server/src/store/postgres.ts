/**
 * The embedded PostgreSQL: started in the data folder, or adopted when it lives on from a server that was killed.
 * It listens on 127.0.0.1 alone, with a random password in a file that only we can read.
 */
import { spawn } from "node:child_process";
import { closeSync, openSync, readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import pg from "pg";
import { AppError } from "../domain/error.js";
import { type Account, databaseAccount } from "./account.js";
import { type Binaries, findBinaries } from "./binaries.js";
import {
  asAccount,
  ensureCluster,
  livePostmaster,
  type Postmaster,
  processExists,
  removeStalePidFile,
  superuser,
} from "./cluster.js";
import { asAppError } from "./database.js";
import { type Place, preparePlace } from "./place.js";

export interface EmbeddedPostgres {
  /** Of database `fettle`. */
  url: string;
  pid: number;
  /** True when it was already running. */
  adopted: boolean;
  /** Orderly end: open transactions are rolled back, everything committed is on disk. */
  stop(): Promise<void>;
}

export interface PostgresOptions {
  home: string;
  /** False for throw-away clusters of tests: committed data may be lost with the machine, not with the process. */
  durable?: boolean;
  /** Longest wait for crash recovery and start. */
  startTimeoutMs?: number;
}

interface Launch {
  place: Place;
  binaries: Binaries;
  account: Account | null;
  durable: boolean;
  deadline: number;
}

/** Throws `database_unavailable` with what stands in the way and how to mend it. */
export async function startPostgres(options: PostgresOptions): Promise<EmbeddedPostgres> {
  const account = databaseAccount();
  const place = preparePlace(options.home, account);
  const binaries = await findBinaries(account, place.folder);
  await ensureCluster(place, binaries, account);
  const launch = {
    place,
    binaries,
    account,
    durable: options.durable ?? true,
    deadline: Date.now() + (options.startTimeoutMs ?? 120_000),
  };
  const { postmaster, adopted } = await reachPostmaster(launch);
  const url = urlOf(launch, postmaster, "fettle");
  return { url, pid: postmaster.pid, adopted, stop: () => stopPostmaster(postmaster.pid) };
}

const urlOf = ({ place }: Launch, { port }: Postmaster, database: string): string =>
  `postgres://${superuser}:${place.password}@127.0.0.1:${port}/${database}`;

/** A postmaster that was just killed still looks alive for a moment: it counts only when it answers. */
async function reachPostmaster(launch: Launch): Promise<{ postmaster: Postmaster; adopted: boolean }> {
  for (;;) {
    const reached = await adoptOrStart(launch);
    try {
      await ensureDatabase(urlOf(launch, reached.postmaster, "postgres"), "fettle");
      return reached;
    } catch (error) {
      const failure = asAppError(error);
      const passing = failure instanceof AppError && failure.code === "database_unavailable";
      if (!passing || Date.now() > launch.deadline) throw failure;
      await sleep(30);
    }
  }
}

/** Another process may start the same cluster meanwhile: whoever holds postmaster.pid wins, the others adopt. */
async function adoptOrStart(launch: Launch): Promise<{ postmaster: Postmaster; adopted: boolean }> {
  for (let attempt = 1; ; attempt++) {
    const running = livePostmaster(launch.place);
    if (running !== null) {
      const ready = await waitReady(launch, () => processExists(running.pid));
      if (ready !== null) return { postmaster: ready, adopted: true };
      continue;
    }
    removeStalePidFile(launch.place);
    const started = await launchPostmaster(launch, await choosePort(launch.place, attempt > 1));
    if (started !== null) return { postmaster: started, adopted: false };
    if (attempt >= 20 || Date.now() > launch.deadline) throw startFailed(launch.place);
    // Children of a killed postmaster need a moment to end; until then its shared memory is held.
    await sleep(Math.min(1_000, 50 * attempt));
  }
}

async function launchPostmaster(launch: Launch, port: number): Promise<Postmaster | null> {
  shortenLog(launch.place.log);
  const log = openSync(launch.place.log, "a", 0o600);
  const args = ["-D", launch.place.data, "-p", String(port), ...settings(launch.durable)];
  const child = spawn(launch.binaries.postgres, args, {
    ...asAccount(launch.account),
    detached: true,
    stdio: ["ignore", log, log],
  });
  closeSync(log);
  let ended = false;
  child.on("exit", () => {
    ended = true;
  });
  child.on("error", () => {
    ended = true;
  });
  child.unref();
  const ready = await waitReady(launch, () => !ended);
  return ready?.pid === child.pid ? ready : null;
}

function settings(durable: boolean): string[] {
  const values: Record<string, string> = {
    listen_addresses: "127.0.0.1",
    unix_socket_directories: "",
    max_connections: "60",
    shared_buffers: "64MB",
    timezone: "UTC",
    log_min_messages: "warning",
    log_line_prefix: "%m [%p] ",
    // After a crash: one sync of the file system instead of one of each of a thousand files, seconds less.
    ...(process.platform === "linux" ? { recovery_init_sync_method: "syncfs" } : {}),
    ...(durable ? {} : { fsync: "off", full_page_writes: "off" }),
  };
  return Object.entries(values).flatMap(([name, value]) => ["-c", `${name}=${value}`]);
}

/** Polls postmaster.pid: PostgreSQL writes `ready` into it when recovery is done. Null when `alive` says no. */
async function waitReady(launch: Launch, alive: () => boolean): Promise<Postmaster | null> {
  while (alive()) {
    const postmaster = livePostmaster(launch.place);
    if (postmaster?.ready) return postmaster;
    if (Date.now() > launch.deadline) throw startFailed(launch.place);
    await sleep(15);
  }
  return null;
}

/** The port of last time when it is free, so that the address stays. */
async function choosePort(place: Place, fresh: boolean): Promise<number> {
  const file = join(place.folder, "port");
  const kept = fresh ? 0 : readPort(file);
  const port = (kept > 0 && (await bindable(kept))) || (await bindable(0));
  writeFileSync(file, String(port));
  return port;
}

function readPort(file: string): number {
  try {
    return Number(readFileSync(file, "utf8")) || 0;
  } catch {
    return 0;
  }
}

/** The port when it can be bound on 127.0.0.1 (0 gives a free one), else 0. */
function bindable(port: number): Promise<number> {
  return new Promise((resolve) => {
    const probe = createServer();
    probe.once("error", () => resolve(0));
    probe.listen({ port, host: "127.0.0.1", exclusive: true }, () => {
      const address = probe.address();
      probe.close(() => resolve(typeof address === "object" && address !== null ? address.port : 0));
    });
  });
}

async function ensureDatabase(adminUrl: string, name: string): Promise<void> {
  const client = new pg.Client({ connectionString: adminUrl, connectionTimeoutMillis: 10_000 });
  client.on("error", () => undefined);
  try {
    await client.connect();
    const found = await client.query("select 1 from pg_database where datname = $1", [name]);
    if (found.rowCount === 0) await client.query(`create database ${pg.escapeIdentifier(name)}`);
  } catch (error) {
    const code = (error as { code?: string }).code;
    // Made by another process in between: 42P04 duplicate database, 23505 the same a moment earlier.
    if (code !== "42P04" && code !== "23505") throw error;
  } finally {
    await client.end().catch(() => undefined);
  }
}

async function stopPostmaster(pid: number): Promise<void> {
  for (const signal of ["SIGINT", "SIGQUIT"] as const) {
    if (!processExists(pid)) return;
    process.kill(pid, signal);
    for (const until = Date.now() + 10_000; Date.now() < until && processExists(pid); ) await sleep(15);
  }
}

function shortenLog(log: string): void {
  try {
    if (statSync(log).size > 10 * 1024 * 1024) truncateSync(log);
  } catch {
    // There is no log before the first start.
  }
}

function startFailed(place: Place): AppError {
  const log = readLogTail(place.log);
  const full = /No space left on device/.test(log);
  return new AppError(
    full ? "disk_full" : "database_unavailable",
    `The embedded PostgreSQL in ${place.data} did not start. The end of ${place.log}:\n${log || "(empty)"}`,
  );
}

function readLogTail(log: string): string {
  try {
    return readFileSync(log, "utf8").slice(-1500).trim();
  } catch {
    return "";
  }
}
