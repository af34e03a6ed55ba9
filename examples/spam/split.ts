/** Training and test rows of the mails: no group in both, labels in the same proportion, bounded in number. */
import { holdOut, textHash } from "../../packages/server/src/domain/split.js";
import { seededRandom } from "../data/random.js";
import type { SpamRow } from "./convert.js";

export interface SpamData {
  train: SpamRow[];
  test: SpamRow[];
}

/** Of a thread, or of a mail sent many times, at most this many are used: more of the same says little. */
const maxPerGroup = 3;
const testFraction = 0.3;

/** Deterministic. Throws RangeError when there are not enough mails. */
export function splitMails(
  rows: readonly SpamRow[],
  size: { seed: number; numTrain: number; numTest: number },
): SpamData {
  const bounded = firstOfEachGroup(rows);
  const held = holdOut({
    keys: bounded.map((row) => textHash(row.group)),
    strata: bounded.map((row) => (row.label === "spam" ? 1 : 0)),
    fraction: testFraction,
    maxRows: bounded.length,
    seed: size.seed,
  });
  const random = seededRandom(size.seed);
  const take = (side: 0 | 1, count: number): SpamRow[] => {
    const rowsOfSide = random.shuffled(bounded.filter((_, row) => held[row] === side));
    if (rowsOfSide.length < count) throw new RangeError(`Asked for ${count} mails where ${rowsOfSide.length} are.`);
    return rowsOfSide.slice(0, count);
  };
  return { train: take(0, size.numTrain), test: take(1, size.numTest) };
}

function firstOfEachGroup(rows: readonly SpamRow[]): SpamRow[] {
  const counts = new Map<string, number>();
  return rows.filter(({ group }) => {
    const count = (counts.get(group) ?? 0) + 1;
    counts.set(group, count);
    return count <= maxPerGroup;
  });
}
