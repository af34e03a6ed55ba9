/** Which rows are held out for validation: grouped, stratified, and the same every time. Pure. */

export interface SplitInput {
  /** One a row. Rows with the same key stay on the same side: same group, or same question asked twice. */
  keys: readonly number[];
  /** One a row: the class, as a number; 0 for all when there are none. */
  strata: readonly number[];
  /** Part of the rows to hold out, 0 to 1. */
  fraction: number;
  /** Held out at most, however many rows there are. */
  maxRows: number;
  seed: number;
}

interface Group {
  key: number;
  size: number;
  stratum: number;
}

/**
 * One byte a row: 1 is held out. Each stratum gives its part, rounded, at least one group when it has two of them,
 * and always keeps at least one to train on. The order of the rows does not matter.
 */
export function holdOut({ keys, strata, fraction, maxRows, seed }: SplitInput): Uint8Array {
  const part = Math.min(fraction, maxRows / Math.max(1, keys.length));
  const held = new Set<number>();
  for (const own of byStratum(keys, strata).values()) for (const key of pick(own, part, seed)) held.add(key);
  return Uint8Array.from(keys, (key) => (held.has(key) ? 1 : 0));
}

/** At most 255. */
export interface FoldsInput extends Pick<SplitInput, "keys" | "strata" | "seed"> {
  folds: number;
}

/**
 * The fold of each row, from 0. Every row is in one fold, rows of one key are in the same, and each stratum is spread
 * evenly: by single rows no two folds differ by more than one, of the stratum or of all. No fold is empty when there
 * are as many keys as folds. The order of the rows does not matter.
 */
export function foldsOf({ keys, strata, folds, seed }: FoldsInput): Uint8Array {
  const foldOf = new Map<number, number>();
  const total = new Array<number>(folds).fill(0);
  for (const [, own] of [...byStratum(keys, strata)].sort(([a], [b]) => a - b)) {
    const rows = new Array<number>(folds).fill(0);
    for (const { key, size } of shuffled(own, seed).sort((a, b) => b.size - a.size)) {
      let to = 0;
      for (let fold = 1; fold < folds; fold += 1) {
        const [less, even] = [(rows[fold] ?? 0) - (rows[to] ?? 0), (total[fold] ?? 0) - (total[to] ?? 0)];
        if (less < 0 || (less === 0 && even < 0)) to = fold;
      }
      foldOf.set(key, to);
      rows[to] = (rows[to] ?? 0) + size;
      total[to] = (total[to] ?? 0) + size;
    }
  }
  return Uint8Array.from(keys, (key) => foldOf.get(key) ?? 0);
}

function byStratum(keys: readonly number[], strata: readonly number[]): Map<number, Group[]> {
  const found = new Map<number, Group[]>();
  for (const group of groupsOf(keys, strata).values()) {
    const own = found.get(group.stratum);
    if (own === undefined) found.set(group.stratum, [group]);
    else own.push(group);
  }
  return found;
}

/** A group with rows of several strata counts for the smallest of them. */
function groupsOf(keys: readonly number[], strata: readonly number[]): Map<number, Group> {
  const groups = new Map<number, Group>();
  keys.forEach((key, row) => {
    const stratum = strata[row] ?? 0;
    const group = groups.get(key);
    if (group === undefined) groups.set(key, { key, size: 1, stratum });
    else {
      group.size += 1;
      group.stratum = Math.min(group.stratum, stratum);
    }
  });
  return groups;
}

function pick(groups: Group[], part: number, seed: number): number[] {
  if (groups.length < 2 || part <= 0) return [];
  const rows = groups.reduce((sum, group) => sum + group.size, 0);
  const target = Math.max(1, Math.round(rows * part));
  const picked: number[] = [];
  let taken = 0;
  for (const { key, size } of shuffled(groups, seed)) {
    if (taken >= target || picked.length === groups.length - 1) break;
    if (taken + size > target && taken + size > rows / 2) continue;
    if (taken > 0 && taken + size > target * 1.5) continue;
    picked.push(key);
    taken += size;
  }
  return picked;
}

/** By the seed alone, whatever the order they come in. */
const shuffled = (groups: readonly Group[], seed: number): Group[] =>
  groups
    .map((group) => ({ group, place: mixed(group.key, seed) }))
    .sort((a, b) => a.place - b.place || a.group.key - b.group.key)
    .map(({ group }) => group);

const mixed = (key: number, seed: number): number => textHash(`${seed}:${key}`);

/** A 53-bit hash of a text (cyrb53): not for secrets; two of a million different texts agree with a chance of 1 in 10,000. */
export function textHash(text: string): number {
  let low = 0xdeadbeef;
  let high = 0x41c6ce57;
  for (let at = 0; at < text.length; at += 1) {
    const code = text.charCodeAt(at);
    low = Math.imul(low ^ code, 2654435761);
    high = Math.imul(high ^ code, 1597334677);
  }
  low = Math.imul(low ^ (low >>> 16), 2246822507) ^ Math.imul(high ^ (high >>> 13), 3266489909);
  high = Math.imul(high ^ (high >>> 16), 2246822507) ^ Math.imul(low ^ (low >>> 13), 3266489909);
  return 4294967296 * (2097151 & high) + (low >>> 0);
}
