/** Which trials of a sweep are ended early, by what they and the others had reached when they last evaluated. Pure. */
import type { Metric, Pruning } from "@fettle/contract";

/** One evaluation. `value`: the metric of the model the run would keep if it ended now. */
export interface Point {
  epochs: number;
  at: number;
  value: number;
}
export interface Curve {
  number: number;
  points: readonly Point[];
}

export interface PruningInput {
  pruning: Pruning;
  direction: Metric["direction"];
  curve: Curve;
  others: readonly Curve[];
  /** Epochs of a whole trial. */
  maxEpochs: number;
}

/** Null: the trial goes on. What came later than its last evaluation is not looked at, so the answer stays the same. */
export function reasonToPrune(input: PruningInput): string | null {
  if (input.pruning === "median") return byMedian(input);
  return input.pruning === "hyperband" ? byHyperband(input) : null;
}

const close = 1e-9;
const better = (direction: Metric["direction"], one: number, other: number): boolean =>
  direction === "minimize" ? one < other : one > other;
const shown = (value: number): string => String(Number(value.toPrecision(4)));

/** The first trials show what is usual. */
const trialsBeforeMedian = 4;

function byMedian({ curve, others, direction }: PruningInput): string | null {
  const last = curve.points.at(-1);
  if (last === undefined) return null;
  const reached = others.flatMap((other) => {
    const known = other.points.filter((point) => point.at <= last.at);
    if ((known.at(-1)?.epochs ?? 0) < last.epochs - close) return [];
    const then = known.filter((point) => point.epochs <= last.epochs + close).at(-1);
    return then === undefined ? [] : [then.value];
  });
  if (reached.length < trialsBeforeMedian) return null;
  const sorted = reached.sort((a, b) => a - b);
  const middle = sorted.length / 2;
  const median = ((sorted[Math.ceil(middle) - 1] ?? 0) + (sorted[Math.floor(middle)] ?? 0)) / 2;
  if (!better(direction, median, last.value)) return null;
  return `after ${shown(last.epochs)} epochs it is at ${shown(last.value)}, and half of ${reached.length} other trials were at ${shown(median)} or better`;
}

/** One of so many goes on from a rung; the rungs of a trial are a ninth and a third of its epochs. */
const reduction = 3;
/** Trials of 17 that meet both rungs, the later one alone, and none: as Hyperband shares its budget out. */
const [bothRungs, laterRung, round] = [9, 14, 17];

const rungsOf = (number: number): number[] => {
  const place = number % round;
  if (place >= laterRung) return [];
  return place < bothRungs ? [reduction ** -2, reduction ** -1] : [reduction ** -1];
};

/** Asynchronous: at a rung a trial is compared with those that came there before it, and nobody waits for others. */
function byHyperband({ curve, others, direction, maxEpochs }: PruningInput): string | null {
  const rungs = rungsOf(curve.number);
  const competitors = others.filter((other) => rungsOf(other.number).length === rungs.length);
  for (const rung of rungs) {
    const epochs = rung * maxEpochs;
    const at = arrival(curve, epochs);
    if (at === undefined) return null;
    const before = competitors
      .map((other) => arrival(other, epochs))
      .filter((point): point is Point => point !== undefined && point.at <= at.at);
    const ahead = before.filter((point) => better(direction, point.value, at.value)).length;
    const places = Math.max(1, Math.floor((before.length + 1) / reduction));
    if (ahead >= places)
      return `after ${shown(at.epochs)} epochs it is at ${shown(at.value)}, and ${ahead} of ${before.length} trials that came there before it were better; the best ${places} go on`;
  }
  return null;
}

const arrival = (curve: Curve, epochs: number): Point | undefined =>
  curve.points.find((point) => point.epochs >= epochs - close);
