/**
 * Trainers as processes of this machine, each in a session of its own, so that they outlive the server. All that
 * must be known about them is in the run's folder; memory holds exit codes alone.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync, statSync, truncateSync } from "node:fs";
import { open } from "node:fs/promises";
import { setPriority } from "node:os";
import type { Writable } from "node:stream";
import type { TrainSpec } from "@fettle/contract";
import type { Runner, RunnerState } from "../app/ports.js";
import { AppError } from "../domain/error.js";
import { trainerEnvironment } from "./environment.js";
import { identifyProcess, isAlive, type ProcessIdentity } from "./process-identity.js";
import {
  makeFolder,
  type PidFile,
  newestBase,
  type RunFolder,
  readEventLines,
  readPidFile,
  runFolder,
  writeJson,
} from "./run-folder.js";
import { type SpawnTrainer, type WaitingOptions, WaitingTrainer } from "./waiting.js";

export interface LocalRunnerOptions {
  /** `<home>/blobs/runs`. */
  runsFolder: string;
  /** Program and first arguments, such as `[python, "-m", "fettle_trainer"]`; `train` and the spec's path follow. */
  command: readonly string[];
  /** The server's environment; little of it reaches a trainer. */
  environment: Readonly<Record<string, string | undefined>>;
  /** Set for every trainer, such as PYTHONPATH. */
  extraEnvironment?: Readonly<Record<string, string>>;
  /** 0 to 19: how far trainers stand back for the server. */
  niceness?: number;
  /** Keeps a trainer that waits for the next run; left out: every run starts one from nothing. */
  waiting?: WaitingOptions;
}

export interface LocalRunner extends Runner {
  /** Ends the waiting trainer; those at work go on. */
  close(): void;
}

/**
 * Waits for one line on descriptor 3, then becomes the trainer. The line comes when pid.json is on disk: a server
 * killed in between leaves a closed pipe, and no trainer that nobody knows of.
 */
const gateScript = 'IFS= read -r go <&3 && [ "$go" = go ] || exit 0; exec 3<&-; exec "$@"';

const maxStderrBytes = 8 * 1024 * 1024;

interface Ended {
  exitCode: number | null;
  signal: string | null;
}

export function localRunner(options: LocalRunnerOptions): LocalRunner {
  return new ProcessRunner(options);
}

class ProcessRunner implements LocalRunner {
  /** Children of this server, by run: null until their end is seen. */
  private readonly children = new Map<string, { pid: number; ended: Ended | null }>();

  private readonly waiting: WaitingTrainer | null;

  constructor(private readonly options: LocalRunnerOptions) {
    this.waiting =
      options.waiting === undefined
        ? null
        : new WaitingTrainer(options.waiting, (...given) => this.spawnTrainer(options.command, given));
    this.waiting?.expect(newestBase(options.runsFolder));
  }

  close(): void {
    this.waiting?.close();
  }

  async start(spec: TrainSpec): Promise<{ pid: number }> {
    const folder = runFolder(this.options.runsFolder, spec.run_id);
    const state = await this.state(spec.run_id);
    if (state.alive)
      throw new AppError(
        "conflict",
        `A trainer of run ${spec.run_id} is alive (process ${state.pid}): it must end before another starts.`,
      );
    makeFolder(folder);
    writeJson(folder.spec, spec);
    const stderrFrom = stderrStart(folder);
    const { pid, gate, line } = await this.gated(folder, spec);
    try {
      const identity = identifyProcess(pid);
      if (identity === null)
        throw new AppError("training_failed", `The trainer of run ${spec.run_id} ended before it began.`);
      writeJson(folder.pid, { ...identity, attempt: spec.attempt, stderrFrom } satisfies PidFile);
      gate.end(`${line}\n`);
      return { pid };
    } catch (error) {
      gate.destroy();
      throw error;
    }
  }

  /** A process that becomes the run's trainer when it reads `line`. */
  private async gated(folder: RunFolder, spec: TrainSpec): Promise<{ pid: number; gate: Writable; line: string }> {
    this.waiting?.expect(spec.base_model.path);
    const ready = this.waiting?.take(spec.runtime.num_threads) ?? null;
    if (ready !== null) {
      this.attend(spec.run_id, ready.pid, ready.process);
      return { ...ready, line: JSON.stringify({ spec: folder.spec, log: folder.stderr }) };
    }
    const stderr = openSync(folder.stderr, "a", 0o600);
    const command = ["/bin/sh", "-c", gateScript, "fettle-gate", ...this.options.command];
    const child = this.spawnTrainer(command, [["train", folder.spec], spec.runtime.num_threads, stderr], folder.path);
    closeSync(stderr);
    const pid = await spawned(child);
    this.attend(spec.run_id, pid, child);
    child.unref();
    const gate = child.stdio[3] as Writable;
    // A child killed before it read its line breaks the pipe; its end is seen as an exit.
    gate.on("error", () => undefined);
    return { pid, gate, line: "go" };
  }

  private spawnTrainer(
    command: readonly string[],
    [args, numThreads, log]: Parameters<SpawnTrainer>,
    cwd?: string,
  ): ChildProcess {
    const [program = "", ...first] = command;
    const child = spawn(program, [...first, ...args], {
      ...(cwd === undefined ? {} : { cwd }),
      detached: true,
      env: { ...trainerEnvironment(this.options.environment, numThreads), ...this.options.extraEnvironment },
      stdio: ["ignore", log, log, "pipe"],
    });
    if (this.options.niceness && child.pid !== undefined) lowerPriority(child.pid, this.options.niceness);
    return child;
  }

  private attend(runId: string, pid: number, child: ChildProcess): void {
    this.children.set(runId, { pid, ended: null });
    child.once("exit", (exitCode, signal) => {
      this.children.set(runId, { pid, ended: { exitCode, signal } });
      signalGroup(pid, "SIGKILL");
      if ([...this.children.values()].every(({ ended }) => ended !== null)) this.waiting?.replace();
    });
  }

  async state(runId: string): Promise<RunnerState> {
    const known = readPidFile(runFolder(this.options.runsFolder, runId));
    if (known === null) return { alive: false, pid: null, exitCode: null, signal: null };
    const child = this.children.get(runId);
    if (child === undefined || child.pid !== known.pid)
      return { alive: isAlive(known), pid: known.pid, exitCode: null, signal: null };
    // Our own child counts as alive until its exit code is here.
    if (child.ended === null) return { alive: true, pid: known.pid, exitCode: null, signal: null };
    return { alive: false, pid: known.pid, ...child.ended };
  }

  read(runId: string, offset: number): ReturnType<Runner["read"]> {
    return readEventLines(runFolder(this.options.runsFolder, runId).events, offset);
  }

  /** To the trainer alone: it ends its own children after the checkpoint. */
  async stop(runId: string): Promise<void> {
    const trainer = this.living(runId);
    if (trainer !== null) signalProcess(trainer.pid, "SIGTERM");
  }

  /** To the whole group, so that no child of the trainer stays behind. */
  async kill(runId: string): Promise<void> {
    const trainer = this.living(runId);
    if (trainer !== null) signalGroup(trainer.pid, "SIGKILL");
  }

  /** The process, when it is certainly still the one that was started. */
  private living(runId: string): ProcessIdentity | null {
    const known = readPidFile(runFolder(this.options.runsFolder, runId));
    return known !== null && isAlive(known) ? known : null;
  }

  async stderr(runId: string, maxBytes: number): Promise<string> {
    const folder = runFolder(this.options.runsFolder, runId);
    const from = readPidFile(folder)?.stderrFrom ?? 0;
    const file = await open(folder.stderr, "r").catch(() => null);
    if (file === null) return "";
    try {
      const { size } = await file.stat();
      const start = Math.max(from, size - maxBytes, 0);
      const buffer = Buffer.alloc(Math.max(0, size - start));
      const { bytesRead } = await file.read(buffer, 0, buffer.length, start);
      return buffer.toString("utf8", 0, bytesRead);
    } finally {
      await file.close();
    }
  }
}

/** Where this attempt's words will begin. A log that grew too large starts anew. */
function stderrStart(folder: RunFolder): number {
  const size = statSync(folder.stderr, { throwIfNoEntry: false })?.size ?? 0;
  if (size <= maxStderrBytes) return size;
  truncateSync(folder.stderr);
  return 0;
}

function spawned(child: ChildProcess): Promise<number> {
  return new Promise((resolve, reject) => {
    child.once("spawn", () => resolve(child.pid ?? 0));
    child.once("error", (cause) =>
      reject(new AppError("training_failed", `The trainer could not be started: ${cause.message}`, { cause })),
    );
  });
}

function lowerPriority(pid: number, niceness: number): void {
  try {
    setPriority(pid, niceness);
  } catch {
    // Some containers forbid it; the trainer then runs at the server's priority.
  }
}

function signalProcess(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

function signalGroup(pid: number, signal: NodeJS.Signals): void {
  signalProcess(-pid, signal);
}
