/** Kills servers, trainers and the database at random moments while runs train, and looks for what was lost or doubled. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { RunEvent, RunStatus } from "../../packages/server/src/domain/job.js";
import { isAlive, type ProcessIdentity } from "../../packages/server/src/runner/process-identity.js";
import { connectStore } from "../../packages/server/src/store/open.js";
import { startPostgres } from "../../packages/server/src/store/postgres.js";
import { queueRun } from "./platform.js";
import { startServerProcess } from "./servers.js";

export interface KillOptions {
  home: string;
  rounds: number;
  runs: number;
  steps: number;
  stepMs: number;
  /** Numbers in [0, 1); a seeded one makes a failure repeatable. */
  random: () => number;
  /** What may be killed in a round. */
  targets: readonly Target[];
}
export type Target = "server" | "trainer" | "database";

export interface KillReport {
  kills: Record<Target, number>;
  runs: number;
  succeeded: number;
  events: number;
  events_lost: number;
  events_doubled: number;
  models_made: number;
  /** Of each server after a kill, process start included. */
  ready_ms: number[];
}

/** Throws when the runs do not end within two minutes after the last kill. */
export async function killWhileTraining(options: KillOptions): Promise<KillReport> {
  const { home, steps, stepMs, random } = options;
  const start = () => startServerProcess({ home, databaseUrl: null, script: { steps, stepMs, checkpointEvery: 5 } });
  const kills = { server: 0, trainer: 0, database: 0 };
  const readyMs: number[] = [];
  let ids: string[] = [];
  let server = await start();
  try {
    ids = await withStore(home, (store) => queueRuns(store, options));
    for (let round = 0; round < options.rounds; round++) {
      await sleep(50 + random() * 600);
      const target = options.targets[Math.floor(random() * options.targets.length)] ?? "server";
      if (target === "trainer") {
        kills.trainer += killTrainer(home, ids[Math.floor(random() * ids.length)] ?? "") ? 1 : 0;
        continue;
      }
      if (target === "database" && killDatabase(home)) kills.database += 1;
      await server.kill("SIGKILL");
      kills.server += 1;
      server = await start();
      readyMs.push(Math.round(server.readyMs));
    }
    return { kills, ...(await withStore(home, (store) => compare(store, ids, steps))), ready_ms: readyMs };
  } finally {
    for (const id of ids) killTrainer(home, id);
    await server.kill("SIGTERM");
  }
}

/** By a client of its own, so that no server holds what is compared in the end. */
async function queueRuns(store: Store, { home, runs }: KillOptions): Promise<string[]> {
  const queued: string[] = [];
  for (let n = 0; n < runs; n++) queued.push((await queueRun({ store, home })).id);
  return queued;
}

type Store = Awaited<ReturnType<typeof connectStore>>;

async function withStore<T>(home: string, work: (store: Store) => Promise<T>): Promise<T> {
  const postgres = await startPostgres({ home });
  const store = await connectStore(postgres.url);
  try {
    return await work(store);
  } finally {
    await store.close();
  }
}

async function compare(store: Store, ids: string[], steps: number): Promise<Omit<KillReport, "kills" | "ready_ms">> {
  const report = { runs: ids.length, succeeded: 0, events: 0, events_lost: 0, events_doubled: 0, models_made: 0 };
  for (const id of ids) {
    const status = await ended(store, id);
    if (status === "succeeded") report.succeeded += 1;
    const events = await allEvents(store, id);
    const counts = new Map<number, number>();
    for (const event of events)
      if (event.message.includes("training loss"))
        counts.set(Number(event.data?.step), (counts.get(Number(event.data?.step)) ?? 0) + 1);
    const ends = events.filter((event) => event.message === "The job has successfully completed").length;
    report.events += events.length;
    for (let step = 1; step <= steps; step++) {
      const seen = counts.get(step) ?? 0;
      report.events_lost += seen === 0 ? 1 : 0;
      report.events_doubled += Math.max(0, seen - 1);
    }
    report.events_lost += ends === 0 ? 1 : 0;
    report.events_doubled += Math.max(0, ends - 1);
    // A gap or a repeated number would show a transaction that was half done.
    if (events.some((event, index) => event.seq !== index + 1))
      throw new Error(`The events of ${id} are not numbered 1, 2, 3 …`);
  }
  report.models_made = (await store.models.list("proj_a")).length;
  return report;
}

async function ended(store: Store, id: string): Promise<RunStatus> {
  for (const until = Date.now() + 120_000; Date.now() < until; await sleep(50)) {
    const run = await store.runs.get("proj_a", id);
    if (run !== null && ["succeeded", "failed", "cancelled"].includes(run.status)) return run.status;
  }
  throw new Error(`Run ${id} did not end.`);
}

async function allEvents(store: Store, id: string): Promise<RunEvent[]> {
  const all: RunEvent[] = [];
  for (;;) {
    const page = await store.runs.events("proj_a", id, { limit: 1000, order: "asc", sinceSeq: all.length });
    all.push(...page.data);
    if (!page.hasMore) return all;
  }
}

function killTrainer(home: string, runId: string): boolean {
  try {
    const identity = JSON.parse(
      readFileSync(join(home, "blobs", "runs", runId, "pid.json"), "utf8"),
    ) as ProcessIdentity;
    if (!isAlive(identity)) return false;
    process.kill(identity.pid, "SIGKILL");
    return true;
  } catch {
    return false;
  }
}

function killDatabase(home: string): boolean {
  try {
    process.kill(
      Number(readFileSync(join(home, "postgres", "data", "postmaster.pid"), "utf8").split("\n")[0]),
      "SIGKILL",
    );
    return true;
  } catch {
    return false;
  }
}

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
