/**
 * Gives queued runs to trainers: as many at once as fit, in fair order, each under a lease; watches them; and takes
 * over runs whose server is gone. It keeps nothing that the store does not say, so it may be killed at any line.
 */
import { AppError } from "../domain/error.js";
import { type Run, type RunAction, transition } from "../domain/job.js";
import { type Capacity, fairOrder, reasonToWait, waitingText } from "./dispatcher-queue.js";
import type { Catalogue, Exporter, Lease } from "./ports.js";
import { buildTrainSpec, type SpecOptions } from "./train-spec.js";
import { defaultTimes, type WatchDeps, type WatchTimes, watchRun } from "./watch.js";
import { runEvent } from "./watch-events.js";

export interface DispatcherDeps extends WatchDeps {
  catalogue: Catalogue;
  exporter: Exporter;
  /**
   * Checks a run that is `validating_files` and moves it to `queued` or `failed`; leaves it while its files are
   * still being read. Called again until the run has moved.
   */
  validate(run: Run): Promise<unknown>;
}

export interface DispatcherOptions extends SpecOptions {
  /** This process; see `ownerIsDead`. */
  owner: string;
  /** True when the owner of a lease is certainly gone: its runs are taken over without waiting for expiry. */
  ownerIsDead(owner: string): boolean;
  capacity: Capacity;
  times?: Partial<WatchTimes>;
  /** Between looks at the queue when no change was told. */
  tickMs?: number;
}

export interface Dispatcher {
  /** Stops dispatching and watching; trainers go on. Resolves when the leases are given back. */
  close(): Promise<void>;
}

export function startDispatcher(deps: DispatcherDeps, options: DispatcherOptions): Dispatcher {
  const loop = new DispatchLoop(deps, options);
  loop.begin();
  return { close: () => loop.close() };
}

class DispatchLoop {
  private readonly watched = new Map<string, Promise<void>>();
  private readonly validating = new Set<string>();
  /** The number of the last start of each project, for taking turns. */
  private readonly served = new Map<string, number>();
  private starts = 0;
  private readonly ending = new AbortController();
  private readonly times: WatchTimes;
  private working: Promise<void> | null = null;
  private again = false;
  private stopListening: (() => void)[] = [];

  constructor(
    private readonly deps: DispatcherDeps,
    private readonly options: DispatcherOptions,
  ) {
    this.times = { ...defaultTimes, ...options.times };
  }

  begin(): void {
    this.stopListening = [
      this.deps.store.runs.onChange(() => this.kick()),
      this.deps.clock.every(this.options.tickMs ?? 1_000, () => this.kick()),
    ];
    this.kick();
  }

  async close(): Promise<void> {
    this.ending.abort();
    for (const stop of this.stopListening) stop();
    await this.working;
    await Promise.all(this.watched.values());
  }

  /** One pass at a time; a change during a pass asks for another. */
  private kick(): void {
    if (this.ending.signal.aborted) return;
    if (this.working !== null) {
      this.again = true;
      return;
    }
    this.working = this.pass()
      .catch((error: unknown) => this.deps.log.error({ err: error }, "the dispatcher could not work; trying again"))
      .finally(() => {
        this.working = null;
        if (this.again) {
          this.again = false;
          this.kick();
        }
      });
  }

  private async pass(): Promise<void> {
    const runs = await this.deps.store.runs.withStatus(["validating_files", "queued", "running"]);
    for (const run of runs) if (run.status === "validating_files") this.validate(run);
    await this.adopt(runs.filter((run) => run.status === "running" && !this.watched.has(run.id)));
    // A run that this server still watches may just have been queued again: it is free when its watch has ended.
    const queued = runs.filter((run) => run.status === "queued" && !this.watched.has(run.id));
    await this.startNext(
      queued,
      runs.filter((run) => this.watched.has(run.id) || run.status === "running"),
    );
  }

  private validate(run: Run): void {
    if (this.validating.has(run.id)) return;
    this.validating.add(run.id);
    this.deps
      .validate(run)
      .catch((error: unknown) =>
        this.deps.log.error({ run: run.id, err: error }, "could not validate the run; trying again"),
      )
      .finally(() => this.validating.delete(run.id));
  }

  private async adopt(running: Run[]): Promise<void> {
    for (const run of running) {
      if (this.ending.signal.aborted) return;
      const lease = await this.acquire(run.id);
      if (lease === null) continue;
      this.deps.log.info({ run: run.id }, "adopting a run whose server is gone");
      this.attend(run.id, lease, () =>
        watchRun(this.deps, { run, lease, times: this.times, signal: this.ending.signal }),
      );
    }
  }

  private async startNext(queued: Run[], atWork: Run[]): Promise<void> {
    const running = [...atWork];
    let position = 0;
    for (const run of fairOrder(queued, running, this.served)) {
      if (this.ending.signal.aborted) return;
      // Once one waits, all behind it wait: a large run is not overtaken for ever by small ones.
      const reason =
        reasonToWait(run, running, this.options.capacity) ?? (position > 0 ? "runs before it wait for memory" : null);
      if (reason === null) {
        if (await this.start(run)) running.push(run);
      } else {
        position += 1;
        await this.tellWhy(run, waitingText(position, reason));
      }
    }
  }

  private async tellWhy(run: Run, reason: string): Promise<void> {
    if (run.waiting === reason) return;
    await this.deps.store.runs.update(run.id, (current) => {
      const next = transition(current, { type: "waits", reason });
      return next.ok ? { run: next.run, events: [] } : null;
    });
  }

  /** False: another server was quicker, or the run is no longer queued. */
  private async start(run: Run): Promise<boolean> {
    const lease = await this.acquire(run.id);
    if (lease === null) return false;
    this.starts += 1;
    this.served.set(run.projectId, this.starts);
    const started = await this.change(lease, { type: "started", at: this.deps.clock.now() });
    if (started === null) {
      await this.deps.store.runs.release(lease);
      return false;
    }
    this.attend(started.id, lease, () => this.launch(started, lease));
    return true;
  }

  /** Getting a base model ready may take minutes: the lease is renewed meanwhile, and other runs do not wait for it. */
  private async launch(run: Run, lease: Lease): Promise<void> {
    const stopRenewing = this.deps.clock.every(this.times.renewMs, () => {
      this.deps.store.runs
        .renew(lease, this.times.leaseMs)
        .catch((error: unknown) => this.deps.log.warn({ run: run.id, err: error }, "could not renew the lease"));
    });
    try {
      const spec = await this.unlessEnding(buildTrainSpec(this.deps, run, this.options));
      if (spec === null)
        return void (await this.change(lease, {
          type: "trainer_stopped",
          reason: "signal",
          at: this.deps.clock.now(),
        }));
      await this.deps.runner.start(spec);
    } catch (error) {
      return await this.couldNotStart(run, { lease, error });
    } finally {
      stopRenewing();
    }
    await watchRun(this.deps, { run, lease, times: this.times, signal: this.ending.signal });
  }

  /** Null when the server ends first. */
  private unlessEnding<T>(work: Promise<T>): Promise<T | null> {
    const { signal } = this.ending;
    return new Promise((resolve, reject) => {
      const end = (): void => resolve(null);
      if (signal.aborted) end();
      signal.addEventListener("abort", end, { once: true });
      work.then(resolve, reject).finally(() => signal.removeEventListener("abort", end));
    });
  }

  private async couldNotStart(run: Run, input: { lease: Lease; error: unknown }): Promise<void> {
    const { lease, error } = input;
    this.deps.log.error({ run: run.id, err: error }, "could not start the trainer");
    const at = this.deps.clock.now();
    if (isDiskFull(error)) {
      await this.change(
        lease,
        { type: "trainer_stopped", reason: "disk_full", at },
        `The trainer could not be started: the disk is full.`,
      );
    } else {
      const code = error instanceof AppError ? error.code : "training_failed";
      const message = `The trainer could not be started: ${error instanceof Error ? error.message : String(error)}`;
      // A living trainer of an earlier attempt is ended; the next start then finds none.
      if (code === "conflict") await this.deps.runner.kill(run.id);
      const canRetry = !(error instanceof AppError) || error.retry || code === "conflict";
      await this.change(
        lease,
        { type: "trainer_died", error: { code, message, param: null }, canRetry, progressed: false, at },
        message,
      );
    }
  }

  /** Keeps the lease while `work` goes on, then gives it back. */
  private attend(runId: string, lease: Lease, work: () => Promise<void>): void {
    const attending = work()
      .then(() => this.deps.store.runs.release(lease))
      .catch((error: unknown) =>
        this.deps.log.warn(
          { run: runId, err: error },
          "could not go on with the run; its lease will expire and it is taken up again",
        ),
      )
      .finally(() => {
        this.watched.delete(runId);
        this.kick();
      });
    this.watched.set(runId, attending);
  }

  private acquire(runId: string): Promise<Lease | null> {
    return this.deps.store.runs.acquire(runId, this.options.owner, {
      ttlMs: this.times.leaseMs,
      isDead: this.options.ownerIsDead,
    });
  }

  /** Null when the run is in no state for the action. */
  private async change(lease: Lease, action: RunAction, message?: string): Promise<Run | null> {
    let changed = false;
    const run = await this.deps.store.runs.update(
      lease.runId,
      (current) => {
        const next = transition(current, action);
        changed = next.ok;
        if (!next.ok) return null;
        const key = `start:${current.attempt}:${action.type}`;
        const events =
          message === undefined
            ? []
            : [
                runEvent(this.deps.ids, this.deps.clock.now(), {
                  key,
                  message,
                  level: next.run.status === "failed" ? "error" : "warn",
                }),
              ];
        return { run: next.run, events };
      },
      lease,
    );
    return changed ? run : null;
  }
}

const isDiskFull = (error: unknown): boolean =>
  (error instanceof AppError && error.code === "disk_full") ||
  (error instanceof Error && "code" in error && (error.code === "ENOSPC" || error.code === "EDQUOT"));
