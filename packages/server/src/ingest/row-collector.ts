/** Parsed values of any format -> rows and faults for the sink, and the figures of the report. */
import type { CanonicalRow, Fault, RowKind } from "@fettle/contract";
import type { DataReport, RowSink } from "../app/ports.js";
import { describeShape } from "../domain/row-shape.js";
import { RowReader } from "../domain/rows.js";

/** More classes than this cannot be trained; counting stops there, so that a wrong label column costs no memory. */
export const maxLabels = 1000;
const maxIgnoredNames = 50;

export class RowCollector {
  numRows = 0;
  numUsable = 0;
  numFaults = 0;
  readonly notices: string[] = [];
  readonly #sink: RowSink;
  readonly #reader = new RowReader();
  readonly #labels = new Map<string, number>();
  readonly #ignored = new Map<string, number>();
  #kind: RowKind | null = null;
  #tooManyLabels = false;

  constructor(sink: RowSink) {
    this.#sink = sink;
  }

  /** Null until a row told it. */
  get kind(): RowKind | null {
    return this.#kind;
  }

  fault(fault: Fault): Promise<void> | undefined {
    this.numFaults += 1;
    return this.#sink.fault(fault);
  }

  /** A row that could not even be parsed. */
  unreadable(fault: Fault): Promise<void> | undefined {
    this.numRows += 1;
    return this.fault(fault);
  }

  async value(value: unknown, line: number): Promise<void> {
    this.numRows += 1;
    const { row, faults, ignored, shape } = this.#reader.read(value, { line, expected: this.#kind });
    if (this.#kind === null && shape !== null) {
      this.#kind = shape.kind;
      const renamed = Object.entries(shape.columns).some(([ours, theirs]) => ours !== theirs);
      if (renamed) this.notices.push(`Columns: ${describeShape(shape)}.`);
    }
    for (const name of ignored)
      if (this.#ignored.size < maxIgnoredNames || this.#ignored.has(name))
        this.#ignored.set(name, (this.#ignored.get(name) ?? 0) + 1);
    for (const fault of faults) await this.fault(fault);
    if (row === null) return;
    for (const label of labelsOf(row)) if (!(await this.#countLabel(label, line))) return;
    this.numUsable += 1;
    await this.#sink.row(row);
  }

  async #countLabel(label: string, line: number): Promise<boolean> {
    const count = this.#labels.get(label);
    if (count === undefined && this.#labels.size >= maxLabels) {
      if (this.#tooManyLabels) return false;
      this.#tooManyLabels = true;
      await this.fault({
        line,
        path: "label",
        rule: "too_many_labels",
        message: `There are more than ${maxLabels} different labels: rows with another label are not used.`,
        fix: "Is the right column the label? Merge rare classes.",
      });
      return false;
    }
    this.#labels.set(label, (count ?? 0) + 1);
    return true;
  }

  report(format: DataReport["format"]): Omit<DataReport, "faults" | "rowsSha256"> {
    const labels =
      this.#kind === "classification" || this.#kind === "multilabel" || this.#kind === "entities"
        ? Object.fromEntries([...this.#labels].sort(([a], [b]) => (a < b ? -1 : 1)))
        : null;
    const notices = [...this.notices, ...this.#lookAlikes()];
    if (this.#ignored.size > 0) {
      const names = [...this.#ignored].map(
        ([name, count]) => `${name.slice(0, 60)} (${count} ${count === 1 ? "row" : "rows"})`,
      );
      notices.push(`Not used for training: ${names.join(", ")}.`);
    }
    return {
      format,
      kind: this.#kind,
      numRows: this.numRows,
      numUsable: this.numUsable,
      numFaults: this.numFaults,
      notices,
      labels,
    };
  }

  /** Labels that differ in case alone are most often one class written twice. */
  #lookAlikes(): string[] {
    const byPlain = groupByPlain(this.#labels.keys());
    const alike = [...byPlain.values()].filter((names) => names.length > 1).slice(0, 5);
    return alike.map(
      (names) =>
        `The labels ${names.map((name) => `"${name}"`).join(" and ")} differ only in case: they are kept as different classes.`,
    );
  }
}

function labelsOf(row: CanonicalRow): Set<string> {
  if ("label" in row) return new Set([row.label]);
  if ("labels" in row) return new Set(row.labels);
  return new Set("entities" in row ? row.entities.map(({ label }) => label) : []);
}

function groupByPlain(labels: Iterable<string>): Map<string, string[]> {
  const groups = new Map<string, string[]>();
  for (const label of labels) {
    const plain = label.toLowerCase();
    groups.set(plain, [...(groups.get(plain) ?? []), label]);
  }
  return groups;
}
