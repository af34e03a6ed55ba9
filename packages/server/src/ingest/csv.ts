/** CSV, TSV and the like, through csv-parse. Strict: a quote out of place is told, never read as text. */
import { pipeline, Readable } from "node:stream";
import type { Fault } from "@fettle/contract";
import { type CsvError, type Info, Parser } from "csv-parse";
import { quoted } from "../domain/fault.js";
import { expectedShapes, shapeAdvice, shapeOf } from "../domain/row-shape.js";
import { type Line, LineSplitter } from "./lines.js";
import type { RowCollector } from "./row-collector.js";
import { tooLongFault, utf8Fault } from "./text-checks.js";

export interface CsvSource {
  chunks: AsyncIterable<Buffer>;
  head: Buffer;
  fromUtf16: boolean;
  maxLineBytes: number;
}

export async function readCsv(source: CsvSource, rows: RowCollector): Promise<LineSplitter> {
  const lines = new LineSplitter(source.maxLineBytes);
  await new CsvReading(source, lines, rows).run();
  return lines;
}

const delimiters = [",", ";", "\t", "|"];

/** The delimiter that the first line has most of, outside quotes. */
export function sniffDelimiter(head: string): string {
  const first = head.split(/[\r\n]+/).find((line) => line.trim() !== "") ?? "";
  const bare = first.replaceAll(/"[^"]*"/g, "");
  const counts = delimiters.map((delimiter) => bare.split(delimiter).length);
  return delimiters[counts.indexOf(Math.max(...counts))] ?? ",";
}

interface Parsed {
  record: string[];
  info: Info;
}

class CsvReading {
  #header: string[] | null = null;
  /** Faults found by the line checks and the parser, told in the order of the rows. */
  #pending: Fault[] = [];
  /** Numbers of lines whose bytes are not text: the rows on them are not used. */
  readonly #badLines: number[] = [];
  /** Line on which the last parsed row ends. */
  #parsedLine = 0;
  /** The parser cannot tell where the next row begins: it gets nothing more, and what it still says is not believed. */
  #lost = false;
  /** The header cannot be used. */
  #stopped = false;

  constructor(
    private readonly source: CsvSource,
    private readonly lines: LineSplitter,
    private readonly rows: RowCollector,
  ) {}

  async run(): Promise<void> {
    const delimiter = sniffDelimiter(this.source.head.toString("utf8"));
    if (delimiter !== ",")
      this.rows.notices.push(`Fields are separated by ${delimiter === "\t" ? "tabs" : `"${delimiter}"`}: accepted.`);
    const parser = new Parser({
      delimiter,
      info: true,
      record_delimiter: "\n",
      relax_column_count: true,
      skip_empty_lines: true,
      skip_records_with_error: true,
      max_record_size: this.source.maxLineBytes,
      // Called in the order of parsing, which runs ahead of the loop below.
      on_record: (item, { lines }) => {
        if (this.#lost) return null;
        this.#parsedLine = lines;
        return item;
      },
    });
    parser.on("skip", (error) => this.#broken(error));
    // An error of the source destroys the parser with it, so the loop below throws it.
    pipeline(Readable.from(this.#text(), { objectMode: false }), parser, () => undefined);
    for await (const { record, info } of parser as AsyncIterable<Parsed>) {
      await this.#tell();
      await this.#record(record, info.lines);
      if (this.#stopped) break;
    }
    await this.#tell();
  }

  async *#text(): AsyncIterable<string> {
    for await (const chunk of this.source.chunks) {
      if (this.#lost) return;
      const text = this.lines
        .push(chunk)
        .map((line) => this.#checked(line))
        .join("");
      if (text !== "") yield text;
    }
    if (this.#lost) return;
    const rest = this.lines
      .end()
      .map((line) => this.#checked(line))
      .join("");
    if (rest !== "") yield rest;
  }

  #checked(line: Line): string {
    if (line.tooLong) {
      this.#lose(tooLongFault(line.number, line.length, this.source.maxLineBytes));
      return "";
    }
    const fault = utf8Fault(line.bytes, line.number, this.source.fromUtf16) ?? nulFault(line);
    if (fault !== null) {
      this.#pending.push(fault);
      this.#badLines.push(line.number);
    }
    return `${line.bytes.toString("utf8")}\n`;
  }

  /** Only a quote inside an unquoted field leaves the parser sure of where the next row begins. */
  #broken(error: CsvError): void {
    const line = this.#parsedLine + 1;
    if (error.code === "INVALID_OPENING_QUOTE") {
      const at = Number((error as { lines?: number }).lines ?? line);
      if (this.#pending.at(-1)?.line === at) return;
      this.#pending.push({
        line: at,
        rule: "csv_quote",
        message: "There is a quote inside a field that does not begin with one.",
        fix: 'Put the whole field in quotes and double the quotes inside it: "say ""hi""".',
      });
      return;
    }
    const told: Record<string, [message: string, fix: string]> = {
      CSV_QUOTE_NOT_CLOSED: [
        "A quoted field of the row that begins here is never closed.",
        'Add the missing quote; a quote inside a field is written twice: "".',
      ],
      CSV_INVALID_CLOSING_QUOTE: [
        "A quoted field of the row that begins here goes on after its closing quote.",
        'Double the quotes inside the field: "say ""hi"" to her".',
      ],
      CSV_MAX_RECORD_SIZE: [
        `The row that begins here has more than ${this.source.maxLineBytes.toLocaleString("en-US")} bytes.`,
        "Is a closing quote missing? Otherwise split the row.",
      ],
    };
    const [message, fix] = told[error.code] ?? [`The row cannot be read: ${error.message}.`, "Correct the row."];
    this.#lose({
      line,
      rule: "csv_quote",
      message: `${message} The rows after it cannot be told apart and were not read.`,
      fix,
    });
  }

  #lose(fault: Fault): void {
    if (!this.#lost) this.#pending.push(fault);
    this.#lost = true;
  }

  async #tell(): Promise<void> {
    const faults = this.#pending;
    this.#pending = [];
    for (const fault of faults) await this.rows.unreadable(fault);
  }

  async #record(record: string[], endLine: number): Promise<void> {
    const line =
      endLine - record.reduce((breaks, field) => breaks + (field.includes("\n") ? field.split("\n").length - 1 : 0), 0);
    while ((this.#badLines[0] ?? Number.POSITIVE_INFINITY) < line) this.#badLines.shift();
    const bad = (this.#badLines[0] ?? Number.POSITIVE_INFINITY) <= endLine;
    if (this.#header === null) {
      await this.#readHeader(record, line);
      return;
    }
    if (bad) return;
    const header = this.#header;
    if (record.length !== header.length) {
      await this.rows.unreadable({
        line,
        rule: "csv_columns",
        message: `The row has ${record.length} ${record.length === 1 ? "field" : "fields"}: expected ${header.length} as in the header (${header
          .slice(0, 8)
          .map((name) => name.slice(0, 40))
          .join(", ")}).`,
        fix: "Put a field that holds the delimiter or a line break in double quotes.",
      });
      return;
    }
    await this.rows.value(Object.fromEntries(header.map((name, index) => [name, record[index]])), line);
  }

  async #readHeader(record: string[], line: number): Promise<void> {
    const names = record.map((name) => name.trim());
    this.#header = names;
    const twice = names.find((name, index) => name !== "" && names.indexOf(name) !== index);
    if (twice !== undefined) {
      this.#stopped = true;
      await this.rows.fault({
        line,
        rule: "csv_duplicate_column",
        message: `The header names the column ${quoted(twice)} twice.`,
        fix: "Rename one of them.",
      });
      return;
    }
    const shape = shapeOf(names);
    if (shape !== null && shape.kind !== "chat") return;
    this.#stopped = true;
    const found = names
      .slice(0, 8)
      .map((name) => quoted(name))
      .join(", ");
    const message =
      shape === null
        ? `The header has the columns ${found}: expected "text" and "label", or "prompt" and "completion".`
        : `The header has a column "messages": chat rows cannot be read from CSV.`;
    const fix = shape === null ? shapeAdvice(names) : `Write one JSON object a line with ${expectedShapes}.`;
    await this.rows.fault({ line, rule: "unknown_shape", message, fix });
  }
}

function nulFault({ bytes, number }: Line): Fault | null {
  const at = bytes.indexOf(0);
  if (at === -1) return null;
  const column = [...bytes.subarray(0, at).toString("utf8")].length + 1;
  return {
    line: number,
    column,
    rule: "text_nul",
    message: "The text holds a NUL character.",
    fix: "Remove it: no tokenizer or database keeps it.",
  };
}
