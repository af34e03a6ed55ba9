/** What a sweep searches: its dimensions, their values, and which of them are tried next. Pure; the dice are hashes of a seed. */
import {
  type Dimension,
  hyperparametersSchema,
  type SearchedName,
  type SearchedValue,
  type Space,
} from "@fettle/contract";
import { allowedValues } from "./hyperparameters.js";
import { type Decided, decided, refused } from "./refusal.js";
import { textHash } from "./split.js";

export type Values = Partial<Record<SearchedName, SearchedValue>>;

export const defaultSpace: Space = { learning_rate_multiplier: { min: 0.2, max: 5, log: true } };

/** A grid beyond this is refused; so many trials a sweep may have. */
export const maxTrials = 1000;

/** All values of a dimension are held in memory: a tiny step would fill it. */
const maxSteps = 10_000;

/** In the order of their names, whatever the order they were stored in. */
export const dimensionsOf = (space: Space): [SearchedName, Dimension][] =>
  (Object.entries(space) as [SearchedName, Dimension | undefined][])
    .filter((pair): pair is [SearchedName, Dimension] => pair[1] !== undefined)
    .sort(([a], [b]) => (a < b ? -1 : 1));

/** Each value that could be tried must be one that a run takes. */
export function checkSpace(space: Space, fixed: readonly string[]): Decided<Space> {
  const dimensions = dimensionsOf(space);
  if (dimensions.length === 0)
    return refused("value_out_of_range", "space", "The space is empty: name at least one hyperparameter to search.");
  for (const [name, dimension] of dimensions) {
    const param = `space.${name}`;
    if (fixed.includes(name))
      return refused(
        "invalid_request",
        param,
        `${name} is both fixed in hyperparameters and searched in space. Leave it out of one of them.`,
      );
    const wrong = wrongIn(name, dimension);
    if (wrong !== null) return refused("value_out_of_range", param, `${param}${wrong}`);
  }
  const rates = [...fixed, ...dimensions.map(([name]) => name)].filter((name) => name.startsWith("learning_rate"));
  const searched = dimensions.find(([name]) => name.startsWith("learning_rate"));
  if (rates.length > 1 && searched !== undefined)
    return refused(
      "invalid_request",
      `space.${searched[0]}`,
      "learning_rate and learning_rate_multiplier set the same: give or search one of them, not both.",
    );
  return decided(space);
}

function wrongIn(name: SearchedName, dimension: Dimension): string | null {
  if ("values" in dimension) {
    const wrong = dimension.values.find((value) => !fits(name, value));
    if (wrong !== undefined) return `.values has ${JSON.stringify(wrong)}: expected ${expected(name)}.`;
    if (new Set(dimension.values).size < dimension.values.length) return ".values names a value twice. Name it once.";
    return null;
  }
  const { min, max, log, step } = dimension;
  if (min >= max) return `: min is ${min} and max is ${max}: expected min below max.`;
  const wrong = [min, max].find((value) => !fits(name, value));
  if (wrong !== undefined) return ` reaches ${wrong}: expected ${expected(name)}.`;
  if (log && min <= 0) return `: min is ${min} and log is true: expected min above 0.`;
  if (log && step !== undefined) return ": log and step exclude each other. Leave one out, or list the values.";
  if (step !== undefined && (max - min) / step >= maxSteps)
    return `.step is ${step}, which makes more than ${maxSteps} values of ${min} to ${max}. Expected a larger step, or none: a search at random needs none.`;
  if (isWhole(name) && step !== undefined && !Number.isInteger(step))
    return `.step is ${step}: expected a whole number, as ${name} is one.`;
  return null;
}

const fits = (name: SearchedName, value: unknown): boolean =>
  name === "learning_rate_multiplier"
    ? typeof value === "number" && value > 0 && value <= 100
    : hyperparametersSchema.shape[name].safeParse(value).success;
const expected = (name: SearchedName): string => allowedValues(name)?.expected ?? "a value that a run takes";
const isWhole = (name: SearchedName): boolean => expected(name).startsWith("a whole number");

/** All values of a dimension in order; null: there is no end of them. */
function valuesOf(name: SearchedName, dimension: Dimension): SearchedValue[] | null {
  if ("values" in dimension) return dimension.values;
  const { min, max, log } = dimension;
  const step = dimension.step ?? (isWhole(name) && !log ? 1 : null);
  if (step === null) return null;
  const count = Math.floor((max - min) / step + 1e-9) + 1;
  return Array.from({ length: count }, (_, index) => Number((min + index * step).toPrecision(12)));
}

/** Of a dimension that has an end: its values. Else its bounds. */
export type OpenOrListed =
  | { name: SearchedName; values: SearchedValue[] }
  | { name: SearchedName; min: number; max: number; log: boolean; whole: boolean };

export const openOrListed = (space: Space): OpenOrListed[] =>
  dimensionsOf(space).map(([name, dimension]) => {
    const values = valuesOf(name, dimension);
    if (values !== null || "values" in dimension) return { name, values: values ?? [] };
    const { min, max, log } = dimension;
    return { name, min, max, log, whole: isWhole(name) };
  });

/** How many combinations there are; null: no end. */
export function sizeOf(space: Space): number | null {
  let size = 1;
  for (const [name, dimension] of dimensionsOf(space)) {
    const values = valuesOf(name, dimension);
    if (values === null) return null;
    size *= values.length;
  }
  return size;
}

export function checkGrid(space: Space): Decided<number> {
  for (const [name, dimension] of dimensionsOf(space))
    if (valuesOf(name, dimension) === null)
      return refused(
        "invalid_request",
        `space.${name}`,
        `space.${name} is a range without a step, which has no end of values: a grid needs a list of values or a step. Or search at random.`,
      );
  const size = sizeOf(space) ?? 0;
  if (size > maxTrials)
    return refused(
      "value_out_of_range",
      "space",
      `The grid has ${size} combinations: expected at most ${maxTrials}. Name fewer values, or search at random.`,
    );
  return decided(size);
}

/** The combination at `index` of the grid, in an order shuffled by the seed: what a budget leaves out is then no corner of it. */
export function gridValues(space: Space, { index, seed }: { index: number; seed: number }): Values | null {
  const size = sizeOf(space);
  if (size === null || index >= size) return null;
  const places = Array.from({ length: size }, (_, place) => place).sort(
    (a, b) => textHash(`grid:${seed}:${a}`) - textHash(`grid:${seed}:${b}`) || a - b,
  );
  let rest = places[index] ?? 0;
  const values: Values = {};
  for (const [name, dimension] of dimensionsOf(space)) {
    const own = valuesOf(name, dimension) ?? [];
    const value = own[rest % own.length];
    if (value !== undefined) values[name] = value;
    rest = Math.floor(rest / own.length);
  }
  return values;
}

const redraws = 200;

/** Values of trial `number`, none of `tried`; null: everything there is seems to be tried. */
export function randomValues(
  space: Space,
  { number, seed, tried }: { number: number; seed: number; tried: readonly Values[] },
): Values | null {
  const size = sizeOf(space);
  const seen = new Set(tried.map(keyOf));
  if (size !== null && seen.size >= size) return null;
  for (let draw = 0; draw < redraws; draw += 1) {
    const values: Values = {};
    for (const [name, dimension] of dimensionsOf(space))
      values[name] = pick(name, dimension, textHash(`random:${seed}:${number}:${draw}:${name}`) / 2 ** 53);
    if (!seen.has(keyOf(values))) return values;
  }
  return null;
}

export const keyOf = (values: Values): string =>
  JSON.stringify(Object.entries(values).sort(([a], [b]) => (a < b ? -1 : 1)));

/** `chance` is from 0 to below 1. */
function pick(name: SearchedName, dimension: Dimension, chance: number): SearchedValue {
  const values = valuesOf(name, dimension);
  if (values !== null) return values[Math.floor(chance * values.length)] ?? null;
  if ("values" in dimension) return null;
  const { min, max, log } = dimension;
  const value = log ? Math.exp(Math.log(min) + chance * Math.log(max / min)) : min + chance * (max - min);
  const rounded = isWhole(name) ? Math.round(value) : Number(value.toPrecision(4));
  return Math.min(max, Math.max(min, rounded));
}
