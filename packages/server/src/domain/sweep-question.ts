/** What a sweep knows, as an estimator is asked about it. Pure. */
import { openOrListed, type OpenOrListed, type Values } from "./search-space.js";
import { isSearched, pointsOf, scoreOf, type Sweep, type Trial, valuesOfTrial } from "./sweep.js";

export interface Question {
  dimensions: OpenOrListed[];
  direction: "minimize" | "maximize";
  /** Another one for each question: it is the estimator's dice. */
  seed: number;
  trials: {
    values: Values;
    state: "succeeded" | "pruned" | "failed" | "running";
    score: number | null;
    /** Epochs and score. */
    points: [number, number][];
  }[];
}

export function questionOf(sweep: Sweep, trials: readonly Trial[]): Question {
  return {
    dimensions: openOrListed(sweep.space),
    direction: sweep.metric.direction,
    seed: (sweep.seed + trials.length) % 2147483648,
    trials: trials.filter(isSearched).map((trial) => ({
      values: valuesOfTrial(sweep, trial),
      state: stateOf(sweep, trial),
      score: scoreOf(sweep, trial),
      points: pointsOf(sweep, trial).map(({ epochs, value }) => [epochs, value]),
    })),
  };
}

function stateOf(sweep: Sweep, trial: Trial): Question["trials"][number]["state"] {
  const { plan, run } = trial;
  if (scoreOf(sweep, trial) !== null) return "succeeded";
  if (plan.stopped?.why === "pruned") return "pruned";
  const open = run === null ? plan.stopped === null : run.finishedAt === null;
  return open ? "running" : "failed";
}
