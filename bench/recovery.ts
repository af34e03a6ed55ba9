/**
 * What is lost when things are killed: servers, trainers and the database, by SIGKILL, at random moments, while runs train.
 *
 *   npm run bench -- recovery [--json] [--rounds 20] [--runs 2] [--seed N]
 *
 * Servers are processes of their own on the embedded PostgreSQL; trainers are scripted ones that write the contract's
 * events, so that a round takes a second and what is measured is the server's recovery.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { type KillReport, killWhileTraining } from "../tests/recovery/kills.js";
import { seeded } from "../tests/recovery/seeded.js";

export interface RecoveryOptions {
  rounds: number;
  runs: number;
  seed: number;
}

export interface RecoveryFigures extends KillReport {
  bench: "recovery";
  seed: number;
  ready_ms_median: number;
  ready_ms_max: number;
  wall_s: number;
}

export async function run({ rounds, runs, seed }: RecoveryOptions): Promise<RecoveryFigures> {
  const home = mkdtempSync(join(tmpdir(), "fettle-bench-recovery-"));
  const before = performance.now();
  try {
    // Long enough that the runs still train at the last kill.
    const steps = rounds * 20;
    const report = await killWhileTraining({
      home,
      rounds,
      runs,
      steps,
      stepMs: 100,
      random: seeded(seed),
      targets: ["server", "server", "trainer", "database"],
    });
    const ready = [...report.ready_ms].sort((a, b) => a - b);
    return {
      bench: "recovery",
      seed,
      ...report,
      ready_ms_median: ready[Math.floor(ready.length / 2)] ?? 0,
      ready_ms_max: ready.at(-1) ?? 0,
      wall_s: Math.round((performance.now() - before) / 100) / 10,
    };
  } finally {
    rmSync(home, { recursive: true, force: true });
  }
}

function print(figures: RecoveryFigures): void {
  const { kills } = figures;
  const lines = [
    `kills             ${kills.server} of the server, ${kills.trainer} of a trainer, ${kills.database} of the database (seed ${figures.seed})`,
    `runs              ${figures.succeeded} of ${figures.runs} succeeded, ${figures.models_made} models`,
    `events            ${figures.events}, lost ${figures.events_lost}, doubled ${figures.events_doubled}`,
    `ready after kill  ${figures.ready_ms_median} ms in the middle, ${figures.ready_ms_max} ms at most (process start included)`,
    `wall time         ${figures.wall_s} s`,
  ];
  process.stdout.write(`${lines.join("\n")}\n`);
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      help: { type: "boolean", short: "h" },
      json: { type: "boolean" },
      rounds: { type: "string", default: "20" },
      runs: { type: "string", default: "2" },
      seed: { type: "string", default: String(Date.now() % 100_000) },
    },
  });
  if (values.help) {
    process.stderr.write("npm run bench -- recovery [--json] [--rounds 20] [--runs 2] [--seed N]\n");
    return;
  }
  const figures = await run({ rounds: Number(values.rounds), runs: Number(values.runs), seed: Number(values.seed) });
  if (values.json) process.stdout.write(`${JSON.stringify(figures)}\n`);
  else print(figures);
  if (figures.events_lost + figures.events_doubled > 0 || figures.succeeded < figures.runs) process.exitCode = 1;
}

if (process.argv[1] !== undefined && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) await main();
