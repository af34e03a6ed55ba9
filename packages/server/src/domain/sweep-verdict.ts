/** Whether what a sweep found is better than the automatic values by more than chance. Pure. */
import type { Verdict } from "@fettle/contract";
import { summarize } from "./confidence.js";
import { bestOf, gain, scoreOf, type Sweep, type Trial } from "./sweep.js";

const shown = (value: number): string => String(Number(value.toPrecision(3)));

/**
 * Of pairs with seeds the search has not used: the best of many trials is partly luck with its seed, which a pair of
 * fresh ones does not have.
 */
export function verdictOf(sweep: Pick<Sweep, "metric" | "repeats">, trials: readonly Trial[]): Verdict {
  const best = bestOf(sweep, trials);
  const scores = (role: string): Map<number, number> =>
    new Map(
      trials
        .filter(({ plan }) => plan.role === role)
        .flatMap((trial) => {
          const score = scoreOf(sweep, trial);
          return score === null ? [] : [[trial.plan.seed, score] as const];
        }),
    );
  const [automatic, found] = [scores("repeat_automatic"), scores("repeat_best")];
  const gains = [...automatic].flatMap(([seed, from]) => {
    const to = found.get(seed);
    return to === undefined ? [] : [gain(sweep, from, to)];
  });
  const noise = summarize([...scores("automatic").values(), ...automatic.values()])?.std ?? null;
  const measured = summarize(gains);
  const facts = {
    pairs: gains.length,
    mean_gain: measured?.mean ?? null,
    interval: measured?.interval ?? null,
    noise,
  };
  if (best === null) return { answer: "unknown", message: "No trial came to its end.", ...facts };
  if (best.trial.plan.role === "automatic")
    return { answer: "not_better", message: "No configuration scored better than the automatic values.", ...facts };
  if (measured === null) {
    const why =
      sweep.repeats < 2
        ? `${sweep.repeats} repeats cannot tell a gain from chance; ask for 2 or more`
        : `only ${gains.length} of ${sweep.repeats} pairs of repeats came to their end`;
    return { answer: "unknown", message: `Trial ${best.trial.plan.number} scored best, but ${why}.`, ...facts };
  }
  const [least, most] = measured.interval;
  const range = `by ${shown(measured.mean)} in ${sweep.metric.name} (95 % interval ${shown(least)} to ${shown(most)}, ${gains.length} pairs of seeds)`;
  if (least > 0)
    return {
      answer: "better",
      message: `Trial ${best.trial.plan.number} is better than the automatic values ${range}.`,
      ...facts,
    };
  const message = `Trial ${best.trial.plan.number} is not better than the automatic values by more than chance: it differs ${range}. Keep the automatic values, or ask for more repeats.`;
  return { answer: "not_better", message, ...facts };
}
