/**
 * Does a trainer that is alive get on with its work? Its heartbeats come from a thread of their own and go on when
 * the work hangs; they tell how long ago the last mark of progress was made. Pure.
 */
import type { TrainerEvent, TrainerPhase } from "@fettle/contract";
import type { NewRunEvent } from "./ports.js";

export interface ProgressTimes {
  /** Without progress for so long, the user is told: with a heartbeat's 3 s and a poll on top, within 15 s. */
  idleNoticeMs: number;
  /** Without progress for so long, a trainer whose pace is known is ended; see `endLimit`. */
  idleMs: number;
  /** The same where the pace is not known: a load, a proof, the first batch. More than the 30 min a proof may take. */
  unmarkedMs: number;
}

/** Told of again only when a piece takes this many times as long as expected: a slow model is no news at each batch. */
const noticeFactor = 2;
/** Rows differ in length and machines in load, and a wrong end costs the work since the last checkpoint. */
const endFactor = 10;

export interface Idle {
  phase: TrainerPhase;
  ms: number;
  /** Unix seconds, by the trainer's clock. */
  since: number;
}

export interface Advance {
  /** Of the newest event known; none is taken in twice. */
  seq: number;
  attempt: number;
  /** At the newest heartbeat; null when something else was written since. */
  idle: Idle | null;
  /** How long a piece of each phase is expected to take, as last told, by an earlier attempt if need be. */
  expectedMs: Partial<Record<TrainerPhase, number>>;
  /** The heartbeat after which the user was told, and since when the work stood; null: it goes on. */
  told: { seq: number; since: number } | null;
}

export const noAdvance: Advance = { seq: 0, attempt: 0, idle: null, expectedMs: {}, told: null };

export type ProgressNotice = Pick<NewRunEvent, "key" | "level" | "message" | "data" | "createdAt">;

/** What is known after `events`, and what the user is told of them: once when the work stands, once when it goes on. */
export function followAdvance(
  before: Advance,
  events: readonly TrainerEvent[],
  times: ProgressTimes,
): { advance: Advance; notices: ProgressNotice[] } {
  const advance = { ...before, expectedMs: { ...before.expectedMs } };
  const notices: ProgressNotice[] = [];
  for (const event of events) {
    // A line that could not be read has the number 0: nobody knows who wrote it.
    if (event.seq <= advance.seq) continue;
    advance.seq = event.seq;
    if (event.attempt !== advance.attempt) Object.assign(advance, { attempt: event.attempt, idle: null, told: null });
    const idle = idleAt(event, advance);
    const stands = idle !== null && advance.idle?.phase === idle.phase && idle.ms >= advance.idle.ms;
    if (advance.told !== null && !stands) {
      notices.push(goesOn(advance.told, event.time, idle));
      advance.told = null;
    }
    advance.idle = idle;
    if (idle === null || advance.told !== null || idle.ms < noticeLimit(advance, idle.phase, times)) continue;
    advance.told = { seq: event.seq, since: idle.since };
    notices.push(standsStill(event, { idle, advance, times }));
  }
  return { advance, notices };
}

/** How long, and at what, the trainer of this attempt has stood for longer than it may; null: it may go on. */
export function stoodTooLong(advance: Advance, attempt: number, times: ProgressTimes): Idle | null {
  const { idle } = advance;
  if (idle === null || advance.attempt !== attempt) return null;
  return idle.ms >= endLimit(advance, idle.phase, times) ? idle : null;
}

/** As a run's event and its end name it, after "while". */
export const phaseWords: Record<TrainerPhase, string> = {
  starting: "starting",
  loading: "loading the model",
  reading: "reading the rows",
  tokenising: "tokenising the rows",
  training: "training on a batch",
  optimiser: "updating the weights",
  evaluating: "evaluating a batch",
  saving: "writing a checkpoint",
  exporting: "writing the model",
  verifying: "proving the saved model in a fresh process",
};

/** Learns the expectation of a heartbeat; null for any other event, which the working thread wrote itself. */
function idleAt(event: TrainerEvent, advance: Advance): Idle | null {
  if (event.type !== "heartbeat" || event.phase === undefined || event.idle_s === undefined) return null;
  const { phase, idle_s, expected_s } = event;
  if (expected_s !== null && expected_s !== undefined) advance.expectedMs[phase] = expected_s * 1000;
  return { phase, ms: idle_s * 1000, since: event.time - idle_s };
}

const noticeLimit = ({ expectedMs }: Advance, phase: TrainerPhase, times: ProgressTimes): number =>
  Math.max(times.idleNoticeMs, noticeFactor * (expectedMs[phase] ?? 0));

function endLimit({ expectedMs }: Advance, phase: TrainerPhase, times: ProgressTimes): number {
  const expected = expectedMs[phase];
  return expected === undefined ? times.unmarkedMs : Math.max(times.idleMs, endFactor * expected);
}

function standsStill(
  event: TrainerEvent,
  { idle, advance, times }: { idle: Idle; advance: Advance; times: ProgressTimes },
): ProgressNotice {
  const [idleSeconds, limitSeconds] = [idle.ms, endLimit(advance, idle.phase, times)].map((ms) =>
    Math.round(ms / 1000),
  );
  return {
    key: `idle:${event.seq}`,
    createdAt: Math.round(event.time * 1000),
    // Nobody knows how long a load may take; a batch that takes much longer than those before it is a worry.
    level: advance.expectedMs[idle.phase] === undefined ? "info" : "warn",
    message: `No progress for ${idleSeconds} s while ${phaseWords[idle.phase]}. The trainer is alive; after ${limitSeconds} s it is ended and the run goes on from its last checkpoint.`,
    data: { phase: idle.phase, idle_seconds: idleSeconds, limit_seconds: limitSeconds },
  };
}

function goesOn(told: { seq: number; since: number }, time: number, idle: Idle | null): ProgressNotice {
  const seconds = Math.max(0, Math.round((idle?.since ?? time) - told.since));
  return {
    key: `idle-over:${told.seq}`,
    createdAt: Math.round(time * 1000),
    level: "info",
    message: `The trainer makes progress again, after ${seconds} s.`,
    data: { idle_seconds: seconds },
  };
}
