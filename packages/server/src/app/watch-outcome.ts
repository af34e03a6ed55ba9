/** Why a trainer is gone, in words a user can act on. */
import { type ErrorCode, errorCatalogue, trainerExit } from "@fettle/contract";
import type { Run, RunAction } from "../domain/job.js";
import type { RunnerState } from "./ports.js";
import type { Facts } from "./watch-facts.js";
import { type Idle, phaseWords } from "./watch-progress.js";

/** For how long a trainer stood; `phase` null: in silence. */
export type Stalled = Pick<Idle, "ms"> & { phase: Idle["phase"] | null };

export interface Ending {
  facts: Facts;
  state: RunnerState;
  /** Tail of the trainer's stderr. */
  stderr: string;
  /** Set when we ended it because no sign of life or of progress came. */
  stalled: Stalled | null;
  at: number;
}

/** What the end of a trainer, without a verified model, means for its run. */
export function endingAction(run: Run, ending: Ending): RunAction {
  const { facts, at } = ending;
  const ours = facts.attempt === run.attempt;
  if (ours && facts.stopped !== null) return { type: "trainer_stopped", reason: facts.stopped.reason, at };
  const progressed = ours && facts.checkpointed;
  if (ours && facts.failed !== null) {
    const { code, message, hint } = facts.failed;
    return {
      type: "trainer_died",
      error: { code: knownCode(code), message: [message, hint].filter(Boolean).join(" "), param: null },
      canRetry: false,
      progressed,
      at,
    };
  }
  // On a full disk not even the last line may fit: the exit code says it then.
  if (ending.state.exitCode === trainerExit.disk_full) return { type: "trainer_stopped", reason: "disk_full", at };
  const { code, what, canRetry } = explain(ending);
  const said = lastLines(ending.stderr);
  const message = said === "" ? `${what} It said nothing on stderr.` : `${what} Its last words:\n${said}`;
  return { type: "trainer_died", error: { code, message, param: null }, canRetry, progressed, at };
}

const knownCode = (code: string): ErrorCode =>
  Object.hasOwn(errorCatalogue, code) ? (code as ErrorCode) : "training_failed";

interface Explanation {
  code: ErrorCode;
  what: string;
  canRetry: boolean;
}

const lessMemory = "lower per_device_train_batch_size or max_length, or choose a smaller model";
const signalWords: Record<string, string> = {
  SIGKILL: `The trainer was killed (SIGKILL): by a person, or by the system because memory ran out. If it happens again, ${lessMemory}.`,
  SIGSEGV: "The trainer crashed (SIGSEGV, a fault in native code). Check the installation with `fettle doctor`.",
  SIGBUS: "The trainer crashed (SIGBUS): often a full disk or shared memory behind a mapped file. Check free space.",
  SIGILL:
    "The trainer crashed (SIGILL): a library was built for another processor. Check the installation with `fettle doctor`.",
  SIGABRT: "The trainer aborted (SIGABRT): a library gave up.",
  SIGTERM: "The trainer was asked to end (SIGTERM) before it could write a checkpoint.",
};
const signalNumbers: Record<number, string> = {
  4: "SIGILL",
  6: "SIGABRT",
  7: "SIGBUS",
  9: "SIGKILL",
  11: "SIGSEGV",
  15: "SIGTERM",
};

function explain({ state, stderr, stalled }: Ending): Explanation {
  if (stalled !== null) {
    const seconds = Math.round(stalled.ms / 1000);
    return {
      code: "trainer_stalled",
      what:
        stalled.phase === null
          ? `The trainer gave no sign of life for ${seconds} s and was ended.`
          : `The trainer was alive but made no progress for ${seconds} s while ${phaseWords[stalled.phase]}, and was ended.`,
      canRetry: true,
    };
  }
  if (/MemoryError|out of memory|Cannot allocate memory/i.test(stderr))
    return { code: "out_of_memory", what: `The trainer ran out of memory: ${lessMemory}.`, canRetry: false };
  const signal =
    state.signal ?? (state.exitCode !== null && state.exitCode > 128 ? signalNumbers[state.exitCode - 128] : undefined);
  if (signal !== undefined && signal !== null)
    return {
      code: "training_failed",
      what: signalWords[signal] ?? `The trainer was ended by ${signal}.`,
      canRetry: true,
    };
  if (state.exitCode === trainerExit.bad_spec)
    return { code: "training_failed", what: "The trainer refused its specification.", canRetry: false };
  if (state.exitCode === 126 || state.exitCode === 127) {
    return {
      code: "python_missing",
      what: "The trainer could not be started: its Python was not found. Run `fettle doctor`.",
      canRetry: false,
    };
  }
  if (state.exitCode === null)
    return { code: "training_failed", what: "The trainer ended while no server was watching it.", canRetry: true };
  if (state.exitCode === trainerExit.finished)
    return { code: "training_failed", what: "The trainer ended without a verified model.", canRetry: true };
  return { code: "training_failed", what: `The trainer ended with exit code ${state.exitCode}.`, canRetry: true };
}

/** The last lines, where Python names its error. */
function lastLines(stderr: string): string {
  return stderr.trim().split("\n").slice(-8).join("\n").slice(-1500);
}
