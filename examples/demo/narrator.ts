/** What the demo says while it works. With `json`, talk goes to stderr and stdout holds the one JSON document. */
export interface Narrator {
  say(line: string): void;
  title(text: string): void;
  table(head: readonly string[], rows: readonly (readonly string[])[]): void;
}

export function narrator(write: (text: string) => void, startedAt: number): Narrator {
  const say = (line: string): void => write(`${clock(Date.now() - startedAt)}  ${line}\n`);
  return {
    say,
    title: (text) => write(`\n${text}\n${"-".repeat(text.length)}\n`),
    table: (head, rows) => {
      const widths = head.map((cell, column) =>
        Math.max(cell.length, ...rows.map((row) => (row[column] ?? "").length)),
      );
      const line = (cells: readonly string[]): string =>
        cells
          .map((cell, column) => (column === 0 ? cell.padEnd(widths[column] ?? 0) : cell.padStart(widths[column] ?? 0)))
          .join("  ");
      write(
        `\n${[head, widths.map((width) => "-".repeat(width)), ...rows].map((row) => `    ${line(row)}`).join("\n")}\n\n`,
      );
    },
  };
}

/** `3:07` for 187 000 ms. */
export function clock(ms: number): string {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  return `${String(Math.floor(seconds / 60)).padStart(2)}:${String(seconds % 60).padStart(2, "0")}`;
}
