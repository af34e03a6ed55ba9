/** Which known name someone most likely meant. Pure. */

/** Edits to turn `a` into `b`: insertions, deletions, substitutions and swaps of neighbours, one each. */
export function editDistance(a: string, b: string): number {
  let beforeLast: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, column) => column);
  for (let row = 1; row <= a.length; row += 1) {
    const current = [row];
    for (let column = 1; column <= b.length; column += 1) {
      const differ = a[row - 1] === b[column - 1] ? 0 : 1;
      let best = Math.min((last[column] ?? 0) + 1, (current[column - 1] ?? 0) + 1, (last[column - 1] ?? 0) + differ);
      if (row > 1 && column > 1 && a[row - 1] === b[column - 2] && a[row - 2] === b[column - 1]) {
        best = Math.min(best, (beforeLast[column - 2] ?? 0) + 1);
      }
      current.push(best);
    }
    beforeLast = last;
    last = current;
  }
  return last[b.length] ?? 0;
}

const plain = (name: string): string =>
  name
    .toLowerCase()
    .replaceAll(/[^a-z0-9]/g, "")
    .slice(0, 200);

/** The known name most like `name`, case and punctuation aside; null when nothing is near (more than 40 % differs). */
export function nearestName(name: string, known: Iterable<string>): string | null {
  const wanted = plain(name);
  if (wanted === "") return null;
  let best: { name: string; score: number } | null = null;
  for (const candidate of known) {
    const other = plain(candidate);
    const longest = Math.max(wanted.length, other.length, 1);
    const contained = wanted.length >= 3 && other.includes(wanted);
    const score = contained ? Math.min(0.39, 1 - wanted.length / longest) : editDistance(wanted, other) / longest;
    if (score <= 0.4 && (best === null || score < best.score)) best = { name: candidate, score };
  }
  return best?.name ?? null;
}

/** ` Did you mean "x"?` when something is near, else ` Known: a, b, c.` (at most 12). Begins with a space. */
export function suggestion(name: string, known: readonly string[]): string {
  const near = nearestName(name, known);
  if (near !== null) return ` Did you mean "${near}"?`;
  if (known.length === 0) return "";
  const shown = known.slice(0, 12).join(", ");
  return known.length > 12 ? ` Known: ${shown} and ${known.length - 12} more.` : ` Known: ${shown}.`;
}
