/** How much of a sweep's budget is spent, and what is still to come. Pure. */
import type { Run } from "./job.js";

export interface Budget {
  trials: number | null;
  minutes: number | null;
  money: number | null;
  /** As it was when the sweep was made; 0: not known. */
  pricePerHour: number;
}

/** A trial whose run is still to be made has none. */
interface Timed {
  run: Run | null;
}

/** Null: no limit. Minutes and money, whichever ends first. */
export function budgetMs({ budget }: { budget: Budget }): number | null {
  const limits = [
    ...(budget.minutes === null ? [] : [budget.minutes * 60_000]),
    ...(budget.money === null ? [] : [(budget.money / budget.pricePerHour) * 3_600_000]),
  ];
  return limits.length === 0 ? null : Math.min(...limits);
}

/** Time in which at least one trial was at work: two at once are counted once, as the machine is paid once. */
export function usedMs(trials: readonly Timed[], now: number): number {
  const spans = trials
    .flatMap(({ run }) => (run?.startedAt == null ? [] : [{ from: run.startedAt, to: run.finishedAt ?? now }]))
    .sort((a, b) => a.from - b.from);
  let [used, until] = [0, 0];
  for (const { from, to } of spans) {
    used += Math.max(0, to - Math.max(from, until));
    until = Math.max(until, to);
  }
  return used;
}

/** Mean of the trials that came to their end; null: none did. */
export function typicalMs(trials: readonly Timed[]): number | null {
  const took = trials.flatMap(({ run }) =>
    run?.status === "succeeded" && run.startedAt !== null && run.finishedAt !== null
      ? [run.finishedAt - run.startedAt]
      : [],
  );
  return took.length === 0 ? null : took.reduce((sum, ms) => sum + ms, 0) / took.length;
}

/** Until one more trial would have ended, behind those that have not. */
export function oneMoreMs(trials: readonly Timed[], typical: number, now: number): number {
  const open = trials.filter(({ run }) => run !== null && run.finishedAt === null);
  const ahead = open.map(({ run }) => Math.max(0, typical - (run?.startedAt == null ? 0 : now - run.startedAt)));
  const busy = open.filter(({ run }) => run?.startedAt != null).length;
  return (ahead.reduce((sum, ms) => sum + ms, 0) + typical) / Math.max(1, busy);
}

export interface Left {
  sweep: { budget: Budget };
  trials: readonly Timed[];
  /** Trials of the search still to be planned; null: as many as the time allows. */
  unplanned: number | null;
  /** Repeats still to be planned at most. */
  repeats: number;
  now: number;
}

/** About; null: no trial has come to its end yet. */
export function leftMs({ sweep, trials, unplanned, repeats, now }: Left): number | null {
  const limit = budgetMs(sweep);
  const remaining = limit === null ? null : Math.max(0, limit - usedMs(trials, now));
  const typical = typicalMs(trials);
  if (typical === null || unplanned === null) return remaining;
  const busy = trials.filter(({ run }) => run?.startedAt != null && run.finishedAt === null).length;
  const open = trials.filter(({ run }) => run !== null && run.finishedAt === null).length;
  const expected = ((unplanned + repeats + open) * typical) / Math.max(1, busy);
  return remaining === null ? expected : Math.min(remaining, expected);
}
