/**
 * Watches the trainer of one leased run to its end: takes its events in exactly once, obeys pause and cancel,
 * ends it when it shows no sign of life or makes no progress, and says what its end means. Everything it knows can be
 * read again from the run's folder and the store, so any server can go on where this one was killed.
 */
import type { TrainerEvent } from "@fettle/contract";
import { AppError } from "../domain/error.js";
import { type Run, type RunAction, transition } from "../domain/job.js";
import { isStillThere } from "./checkpoint-files.js";
import {
  type Blobs,
  type Clock,
  type Ids,
  type Ingest,
  type Lease,
  type Log,
  type ModelRecord,
  type NewRunEvent,
  type Runner,
  type RunnerState,
  StaleLease,
  type Store,
} from "./ports.js";
import { runEvent, translateEvents, tunedModelName } from "./watch-events.js";
import { type Facts, foldFacts, noFacts } from "./watch-facts.js";
import { endingAction, type Stalled } from "./watch-outcome.js";
import {
  type Advance,
  followAdvance,
  noAdvance,
  type ProgressNotice,
  type ProgressTimes,
  stoodTooLong,
} from "./watch-progress.js";
import { writeResultFile } from "./watch-results.js";

export interface WatchDeps {
  store: Store;
  runner: Runner;
  blobs: Blobs;
  clock: Clock;
  ids: Ids;
  log: Log;
}

export interface WatchTimes extends ProgressTimes {
  leaseMs: number;
  renewMs: number;
  pollMs: number;
  /** Longest silence of a trainer that has spoken: it writes a heartbeat every few seconds. */
  stallMs: number;
  /** Longest wait for its first word: Python and torch are loaded meanwhile. */
  startupMs: number;
  /** From the request to end (SIGTERM) to SIGKILL: time for one step and a checkpoint. */
  graceMs: number;
}

export const defaultTimes: WatchTimes = {
  leaseMs: 30_000,
  renewMs: 5_000,
  pollMs: 400,
  stallMs: 15_000,
  startupMs: 180_000,
  idleNoticeMs: 10_000,
  idleMs: 120_000,
  unmarkedMs: 2_700_000,
  graceMs: 60_000,
};

export interface WatchInput {
  run: Run;
  lease: Lease;
  times: WatchTimes;
  /** Aborted when the server ends: the trainer goes on, the next server adopts it. */
  signal: AbortSignal;
}

/** Resolves when the run is no longer running, the lease was lost, or `signal` is aborted. Never rejects. */
export async function watchRun(deps: WatchDeps, input: WatchInput): Promise<void> {
  const watch = new RunWatch(deps, input);
  while (!input.signal.aborted) {
    try {
      if (await watch.look()) return;
    } catch (error) {
      if (error instanceof StaleLease)
        return deps.log.warn({ run: input.run.id, err: error }, "another server watches this run now");
      // The database or the disk is away for a moment: the trainer goes on, and nothing is lost by looking again.
      deps.log.error({ run: input.run.id, err: error }, "could not follow the run; trying again");
    }
    await deps.clock.sleep(input.times.pollMs);
  }
}

class RunWatch {
  private readonly facts: Facts = noFacts();
  private advance: Advance = noAdvance;
  /** Not stored yet, or stored by an earlier watcher: the same key is kept once. */
  private untold: ProgressNotice[] = [];
  private readonly runId: string;
  /** Null until the part that was taken in before was read again. */
  private offset: number | null = null;
  private renewedAt: number;
  private lookedAt: number;
  private lastSign: number | null = null;
  private silentMs = 0;
  private stopAskedAt: number | null = null;
  private stalled: Stalled | null = null;

  constructor(
    private readonly deps: WatchDeps,
    private readonly input: WatchInput,
  ) {
    this.runId = input.run.id;
    this.renewedAt = this.lookedAt = deps.clock.now();
  }

  /** One look at the trainer. True: nothing is left to watch. */
  async look(): Promise<boolean> {
    await this.renewLease();
    // The state comes before the reading: what a trainer wrote before its end is then read before the end is judged.
    const state = await this.deps.runner.state(this.runId);
    await this.takeIn();
    const run = await this.deps.store.runs.get(this.input.run.projectId, this.runId);
    if (run === null || run.status !== "running") return true;
    if (this.facts.attempt === run.attempt && this.facts.finished !== null && this.facts.verified !== null) {
      await this.succeed(run, this.facts.finished);
      await this.seeOff();
      return true;
    }
    if (!state.alive) {
      await this.settle(run, state);
      return true;
    }
    await this.obey(run);
    await this.endWhenSilent(run);
    await this.endWhenIdle(run);
    return false;
  }

  private async renewLease(): Promise<void> {
    const now = this.deps.clock.now();
    if (Math.abs(now - this.renewedAt) < this.input.times.renewMs) return;
    if (!(await this.deps.store.runs.renew(this.input.lease, this.input.times.leaseMs)))
      throw new StaleLease(`The lease on run ${this.runId} went to another server.`);
    this.renewedAt = now;
  }

  /** Reads new events and stores them with the offset in one transaction. */
  private async takeIn(): Promise<void> {
    this.offset ??= await this.recall();
    for (;;) {
      const read = await this.deps.runner.read(this.runId, this.offset);
      this.noteSign(read.lastSignOfLife);
      if (read.offset === this.offset) return;
      foldFacts(this.facts, read.events);
      const { advance, notices } = followAdvance(this.advance, read.events, this.input.times);
      await this.storeEvents(read, [...this.untold, ...notices]);
      // Only what is stored is known: after a failure the same events give the same notices.
      this.advance = advance;
      this.untold = [];
      this.offset = read.offset;
    }
  }

  /** After a change of server: learns from the file what earlier watchers took in already. */
  private async recall(): Promise<number> {
    const takenIn = await this.deps.store.runs.offset(this.runId);
    for (let offset = 0; offset < takenIn; ) {
      const read = await this.deps.runner.read(this.runId, offset);
      if (read.offset === offset) break;
      foldFacts(this.facts, read.events);
      const { advance, notices } = followAdvance(this.advance, read.events, this.input.times);
      this.advance = advance;
      // The last read may go past what was taken in.
      this.untold.push(...notices);
      offset = read.offset;
    }
    return takenIn;
  }

  private async storeEvents(
    { events, offset }: { events: TrainerEvent[]; offset: number },
    notices: ProgressNotice[],
  ): Promise<void> {
    const { progress, ...translated } = translateEvents(this.deps.ids, this.input.run, { facts: this.facts, events });
    translated.events.push(...notices.map(({ createdAt, ...words }) => runEvent(this.deps.ids, createdAt, words)));
    // Heartbeats alone move nothing that must be kept.
    if (translated.events.length === 0) return;
    const { totalSteps, memory } = this.facts;
    await this.ingest({
      ...translated,
      goneCheckpoints: translated.checkpoints.length > 0 ? await this.goneCheckpoints() : [],
      offset,
      change: (run) =>
        apply(run, {
          type: "progressed",
          step: progress?.step ?? run.step,
          totalSteps,
          ...(memory === null ? {} : { memory }),
          etaAt: progress === null ? run.etaAt : progress.etaAt,
        }),
    });
  }

  private async ingest(input: Ingest): Promise<void> {
    await this.deps.store.runs.ingest(this.input.lease, input);
    for (const step of input.goneCheckpoints ?? []) this.facts.checkpointSteps.delete(step);
  }

  /** Steps of checkpoints that the trainer has pruned from the disk: they can no longer be asked for. */
  private async goneCheckpoints(): Promise<number[]> {
    const steps = [...this.facts.checkpointSteps];
    const there = await Promise.all(steps.map((step) => isStillThere(this.deps.blobs, { runId: this.runId, step })));
    return steps.filter((_, index) => !there[index]);
  }

  /** Silence is summed up look by look, so that neither a clock that jumps nor a machine that slept looks like a stall. */
  private noteSign(sign: number | null): void {
    const now = this.deps.clock.now();
    const passed = Math.min(Math.max(0, now - this.lookedAt), this.input.times.pollMs * 3);
    this.lookedAt = now;
    this.silentMs = sign === this.lastSign ? this.silentMs + passed : 0;
    this.lastSign = sign;
  }

  private async endWhenSilent(run: Run): Promise<void> {
    const spoken = this.facts.attempt === run.attempt;
    if (this.silentMs < (spoken ? this.input.times.stallMs : this.input.times.startupMs)) return;
    this.stalled = { phase: null, ms: this.silentMs };
    this.silentMs = 0;
    this.deps.log.warn({ run: this.runId, silentMs: this.stalled.ms }, "the trainer shows no sign of life; ending it");
    await this.deps.runner.kill(this.runId);
  }

  private async endWhenIdle(run: Run): Promise<void> {
    const idle = stoodTooLong(this.advance, run.attempt, this.input.times);
    if (idle === null || this.stalled !== null) return;
    this.stalled = { phase: idle.phase, ms: idle.ms };
    this.deps.log.warn({ run: this.runId, ...this.stalled }, "the trainer is alive but stands still; ending it");
    await this.deps.runner.kill(this.runId);
  }

  private async obey(run: Run): Promise<void> {
    if (run.wanted === null) return;
    const now = this.deps.clock.now();
    if (this.stopAskedAt === null) {
      this.stopAskedAt = now;
      await this.deps.runner.stop(this.runId);
    } else if (Math.abs(now - this.stopAskedAt) > this.input.times.graceMs) {
      await this.deps.runner.kill(this.runId);
    }
  }

  private async settle(run: Run, state: RunnerState): Promise<void> {
    const { deps } = this;
    const at = deps.clock.now();
    const stderr = await deps.runner.stderr(this.runId, 16_384);
    const gone = await this.goneCheckpoints();
    if (gone.length > 0)
      await this.ingest({ events: [], checkpoints: [], goneCheckpoints: gone, offset: this.offset ?? 0 });
    await deps.store.runs.update(
      this.runId,
      (current) => {
        const action = endingAction(current, { facts: this.facts, state, stderr, stalled: this.stalled, at });
        const next = apply(current, action);
        return { run: next, events: [runEvent(deps.ids, at, endingWords(next, action))] };
      },
      this.input.lease,
    );
    deps.log.info(
      { run: this.runId, attempt: run.attempt, exitCode: state.exitCode, signal: state.signal },
      "the trainer ended",
    );
  }

  private async succeed(run: Run, finished: NonNullable<Facts["finished"]>): Promise<void> {
    const { deps } = this;
    if (run.task === null || run.method === null)
      throw new AppError("internal_error", `Run ${run.id} is running without a task or method.`);
    const now = deps.clock.now();
    const model: ModelRecord = {
      name: tunedModelName(run),
      projectId: run.projectId,
      runId: run.id,
      baseModel: run.baseModel,
      task: run.task,
      method: run.method,
      artefact: `runs/${run.id}/${finished.artefact_path}`,
      artefactSha256: finished.artefact_sha256,
      labels: run.labels,
      createdAt: now,
    };
    const file = await writeResultFile(deps.blobs, { run, facts: this.facts, now });
    await this.ingest({
      events: [
        runEvent(deps.ids, now, { key: "model", message: `New fine-tuned model created: ${model.name}` }),
        runEvent(deps.ids, now, { key: "succeeded", message: "The job has successfully completed" }),
      ],
      offset: this.offset ?? 0,
      checkpoints: [],
      // The trainer prunes after it has told of a checkpoint; now it is done with that.
      goneCheckpoints: await this.goneCheckpoints(),
      model,
      file,
      change: (current) =>
        apply(current, {
          type: "succeeded",
          fineTunedModel: model.name,
          resultFile: file.id,
          trainedTokens: finished.trained_tokens,
          trainSeconds: finished.train_seconds,
          at: now,
        }),
    });
  }

  /** A finished trainer ends by itself within a moment; one that does not would hold memory for nothing. */
  private async seeOff(): Promise<void> {
    const until = this.deps.clock.now() + 10_000;
    while ((await this.deps.runner.state(this.runId)).alive) {
      if (this.deps.clock.now() > until) return this.deps.runner.kill(this.runId);
      await this.deps.clock.sleep(50);
    }
  }
}

/** The watcher holds the lease, so a refusal here is a fault of ours. */
function apply(run: Run, action: RunAction): Run {
  const next = transition(run, action);
  if (!next.ok) throw new AppError("internal_error", next.reason);
  return next.run;
}

function endingWords(run: Run, action: RunAction): Pick<NewRunEvent, "key" | "message" | "level"> {
  const key = `ended:${run.attempt}`;
  if (run.status === "cancelled") return { key, level: "info", message: "The job was cancelled" };
  if (run.status === "paused") return { key, level: "info", message: `The job is paused. ${run.waiting ?? ""}`.trim() };
  if (run.status === "failed") return { key, level: "error", message: `The job failed: ${run.error?.message ?? ""}` };
  const why = action.type === "trainer_died" ? action.error.message : "The trainer was asked to end by someone else.";
  return { key, level: "warn", message: `${why}\nThe job goes on from its last checkpoint.` };
}
