/**
 * One trainer that has loaded its libraries and waits for a run (`fettle_trainer wait`). It trains nothing until a
 * run comes, and ends when its pipe does: with this server, whatever ends that. Nobody waits for it: where it is not
 * there, a run starts as if there were none.
 */
import type { ChildProcess } from "node:child_process";
import type { Writable } from "node:stream";
import type { Log } from "../app/ports.js";

export interface WaitingOptions {
  /** Runs of another number of threads are not for it. */
  numThreads: number;
  /** Before the first one is started: others need the processor then. */
  firstMs: number;
  /** From the end of the last run to the start of the next one: a run that waits in the queue comes first. */
  nextMs: number;
  log: Log;
}

export interface TakenTrainer {
  pid: number;
  process: ChildProcess;
  /** One line makes it the trainer of a run; the end of the pipe without one ends it. */
  gate: Writable;
}

/** Makes the process, in a session of its own, with a pipe as descriptor 3. */
export type SpawnTrainer = (command: readonly string[], numThreads: number, log: number | "ignore") => ChildProcess;

/** After one that ended by itself: whatever ended it is likely to end the next as well. */
const afterFailureMs = 60_000;

export class WaitingTrainer {
  private waiting: TakenTrainer | null = null;
  private timer: NodeJS.Timeout | null = null;
  private closed = false;
  private nextMs: number;
  /** Folder of the base model that the last run began from: the next one is likely to begin from it as well. */
  private base: string | null = null;

  constructor(
    private readonly options: WaitingOptions,
    private readonly spawnTrainer: SpawnTrainer,
  ) {
    this.nextMs = options.nextMs;
    this.startIn(options.firstMs);
  }

  /**
   * Null when there is none for so many threads. It belongs to the caller from then on. Until `replace` none is
   * started: getting ready beside a run slows its steps down.
   */
  take(numThreads: number): TakenTrainer | null {
    this.stopTimer();
    const taken = this.waiting;
    if (taken === null || numThreads !== this.options.numThreads) return null;
    this.waiting = null;
    this.nextMs = this.options.nextMs;
    return taken;
  }

  /** A run begins, or is likely to begin, from the base model in this folder. Null: from any. */
  expect(base: string | null): void {
    this.base = base;
  }

  /** The last run has ended. */
  replace(): void {
    if (this.waiting === null) this.startIn(this.nextMs);
  }

  close(): void {
    this.closed = true;
    this.stopTimer();
    this.waiting?.process.kill("SIGKILL");
  }

  private startIn(ms: number): void {
    if (this.closed) return;
    this.stopTimer();
    this.timer = setTimeout(() => this.start(), ms).unref();
  }

  private stopTimer(): void {
    if (this.timer !== null) clearTimeout(this.timer);
  }

  private start(): void {
    const process = this.spawnTrainer(
      ["wait", ...(this.base === null ? [] : ["--base", this.base])],
      this.options.numThreads,
      "ignore",
    );
    const gate = process.stdio[3] as Writable;
    // A process that ends first breaks the pipe; its end is seen below.
    gate.on("error", () => undefined);
    process.once("error", (error) => this.failed(process, { err: error }));
    process.once("exit", (exitCode, signal) => this.failed(process, { exitCode, signal }));
    process.unref();
    if (process.pid !== undefined) this.waiting = { pid: process.pid, process, gate };
  }

  private failed(process: ChildProcess, how: object): void {
    if (this.closed || this.waiting?.process !== process) return;
    this.waiting = null;
    this.options.log.warn(how, "the waiting trainer ended; runs start without one, and another is started later");
    this.nextMs = afterFailureMs;
    this.startIn(this.nextMs);
  }
}
