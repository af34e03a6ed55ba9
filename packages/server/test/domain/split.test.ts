import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { foldsOf, holdOut, textHash } from "../../src/domain/split.js";

const rows = fc.array(fc.record({ key: fc.integer({ min: 0, max: 60 }), stratum: fc.integer({ min: 0, max: 3 }) }), {
  maxLength: 300,
});
const split = (items: { key: number; stratum: number }[], seed = 1, fraction = 0.1) =>
  holdOut({
    keys: items.map((item) => item.key),
    strata: items.map((item) => item.stratum),
    fraction,
    maxRows: 1000,
    seed,
  });

describe("holdOut", () => {
  it("never parts rows of one key", () =>
    fc.assert(
      fc.property(rows, fc.nat(), (items, seed) => {
        const held = split(items, seed);
        const sides = new Map<number, number>();
        items.forEach(({ key }, row) => {
          expect(sides.get(key) ?? held[row]).toBe(held[row]);
          sides.set(key, held[row] ?? 0);
        });
      }),
    ));

  it("does not depend on the order of the rows", () =>
    fc.assert(
      fc.property(rows, fc.nat(), (items, seed) => {
        const keysHeld = (list: typeof items): number[] =>
          [...new Set(list.filter((_, row) => split(list, seed)[row] === 1).map((item) => item.key))].sort(
            (a, b) => a - b,
          );
        expect(keysHeld([...items].reverse())).toEqual(keysHeld(items));
      }),
      { numRuns: 30 },
    ));

  it("leaves something to train on, and holds something out, in every stratum with two groups", () =>
    fc.assert(
      fc.property(rows, fc.double({ min: 0.01, max: 0.5, noNaN: true }), (items, fraction) => {
        // One stratum a key, so that a stratum's groups are its own.
        const own = items.map(({ key }) => ({ key, stratum: key % 4 }));
        const held = split(own, 7, fraction);
        for (const stratum of [0, 1, 2, 3]) {
          const mine = own
            .map((item, row) => ({ ...item, held: held[row] }))
            .filter((item) => item.stratum === stratum);
          if (mine.length > 0) expect(mine.some((item) => item.held === 0)).toBe(true);
          const sizes = [...new Set(mine.map((item) => item.key))].map(
            (key) => mine.filter((item) => item.key === key).length,
          );
          if (sizes.length >= 2 && Math.min(...sizes) <= mine.length / 2)
            expect(mine.some((item) => item.held === 1)).toBe(true);
        }
      }),
    ));

  it("takes the part asked for from each class", () => {
    const items = Array.from({ length: 1000 }, (_, row) => ({ key: row, stratum: row < 100 ? 1 : 0 }));
    const held = split(items);
    const count = (stratum: number): number =>
      items.filter((item, row) => item.stratum === stratum && held[row] === 1).length;
    expect([count(0), count(1)]).toEqual([90, 10]);
  });

  it("changes with the seed and not otherwise", () => {
    const items = Array.from({ length: 200 }, (_, row) => ({ key: row, stratum: 0 }));
    expect(split(items, 5)).toEqual(split(items, 5));
    expect(split(items, 5)).not.toEqual(split(items, 6));
  });

  it("holds out at most maxRows", () => {
    const keys = Array.from({ length: 5000 }, (_, row) => row);
    const held = holdOut({ keys, strata: keys.map(() => 0), fraction: 0.5, maxRows: 100, seed: 1 });
    expect(held.reduce((sum, one) => sum + one, 0)).toBe(100);
  });
});

describe("foldsOf", () => {
  const counts = fc.integer({ min: 2, max: 20 });
  const parted = (items: { key: number; stratum: number }[], folds: number, seed = 1) =>
    foldsOf({ keys: items.map(({ key }) => key), strata: items.map(({ stratum }) => stratum), folds, seed });
  const spreadOf = (folds: number, of: Iterable<number>): number => {
    const sizes = new Array<number>(folds).fill(0);
    for (const fold of of) sizes[fold] = (sizes[fold] ?? 0) + 1;
    return Math.max(...sizes) - Math.min(...sizes);
  };

  it("puts every row into one of the folds, and never parts rows of one key", () =>
    fc.assert(
      fc.property(rows, counts, fc.nat(), (items, folds, seed) => {
        const of = parted(items, folds, seed);
        expect(of).toHaveLength(items.length);
        expect([...of].every((fold) => fold < folds)).toBe(true);
        const known = new Map<number, number>();
        items.forEach(({ key }, row) => {
          expect(known.get(key) ?? of[row]).toBe(of[row]);
          known.set(key, of[row] ?? 0);
        });
      }),
    ));

  it("leaves no fold empty where there are as many keys", () =>
    fc.assert(
      fc.property(rows, counts, fc.nat(), (items, folds, seed) => {
        fc.pre(new Set(items.map(({ key }) => key)).size >= folds);
        expect(new Set(parted(items, folds, seed)).size).toBe(folds);
      }),
    ));

  it("spreads single rows evenly, each stratum and all of them", () =>
    fc.assert(
      fc.property(fc.array(fc.nat({ max: 3 }), { maxLength: 200 }), counts, fc.nat(), (strata, folds, seed) => {
        const items = strata.map((stratum, key) => ({ key, stratum }));
        const of = [...parted(items, folds, seed)];
        expect(spreadOf(folds, of)).toBeLessThanOrEqual(1);
        for (const stratum of [0, 1, 2, 3]) {
          const own = of.filter((_, row) => strata[row] === stratum);
          expect(spreadOf(folds, own)).toBeLessThanOrEqual(1);
        }
      }),
    ));

  it("depends on the seed, not on the order of the rows", () =>
    fc.assert(
      fc.property(rows, counts, (items, folds) => {
        const foldOfKey = (list: typeof items) =>
          Object.fromEntries(list.map(({ key }, row) => [key, parted(list, folds)[row]]));
        expect(foldOfKey([...items].reverse())).toEqual(foldOfKey(items));
        const many = Array.from({ length: 100 }, (_, key) => ({ key, stratum: 0 }));
        expect(parted(many, folds, 1)).not.toEqual(parted(many, folds, 2));
      }),
      { numRuns: 30 },
    ));
});

it("textHash spreads: 200,000 texts, no two alike", () => {
  expect(new Set(Array.from({ length: 200_000 }, (_, index) => textHash(`row ${index}`))).size).toBe(200_000);
});
