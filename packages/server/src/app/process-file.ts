/** Reads an uploaded training file once and writes down what is in it: rows, faults, report. Safe to run again at any time. */
import { PassThrough } from "node:stream";
import type { CanonicalRow, Fault } from "@fettle/contract";
import { AppError } from "../domain/error.js";
import { sentence } from "../domain/fault.js";
import { originalKey } from "./files.js";
import type { Blobs, DataReader, DataReport, Store } from "./ports.js";

export interface ProcessFileDeps {
  store: Pick<Store, "files">;
  blobs: Blobs;
  reader: DataReader;
}

/** Faults kept in the report; all of them are in the blob. */
const maxReportFaults = 100;
/** Fewer rows than this are accepted as a file, but not to train on. */
export const minTrainingRows = 10;

export const rowsKey = (fileId: string): string => `files/${fileId}/rows.jsonl`;
export const faultsKey = (fileId: string): string => `files/${fileId}/faults.jsonl`;

/** Any fault makes the file `error`: a row is never dropped behind its owner's back. */
export async function processFile(
  deps: ProcessFileDeps,
  { projectId, fileId }: { projectId: string; fileId: string },
): Promise<void> {
  const file = await deps.store.files.get(projectId, fileId);
  if (file === null || file.deletedAt !== null || file.status !== "uploaded") return;
  const original = await deps.blobs.get(originalKey(fileId));
  if (original === null) {
    await deps.store.files.setProcessed(projectId, fileId, {
      status: "error",
      statusDetails: "The bytes of the file are gone from the disk. Upload it again.",
      report: null,
    });
    return;
  }
  try {
    const report = await readInto(deps, { fileId, filename: file.filename, original });
    await deps.store.files.setProcessed(projectId, fileId, { ...verdict(fileId, report), report });
  } catch (error) {
    // A refusal of the whole file (an archive, an office file) is its result; anything else is retried by the caller.
    if (!(error instanceof AppError) || error.status >= 500) throw error;
    await deps.store.files.setProcessed(projectId, fileId, {
      status: "error",
      statusDetails: error.message,
      report: null,
    });
  }
}

interface Reading {
  fileId: string;
  filename: string;
  original: AsyncIterable<Uint8Array>;
}

async function readInto(
  { blobs, reader }: ProcessFileDeps,
  { fileId, filename, original }: Reading,
): Promise<DataReport> {
  const rows = new LineSink();
  const faults = new LineSink();
  const first: Fault[] = [];
  const reading = reader
    .read(original, filename, {
      row: (row: CanonicalRow) => rows.write(row),
      fault: (fault: Fault) => {
        if (first.length < maxReportFaults) first.push(fault);
        return faults.write(fault);
      },
    })
    .then(
      (report) => {
        rows.end();
        faults.end();
        return report;
      },
      (error: Error) => {
        rows.fail(error);
        faults.fail(error);
        throw error;
      },
    );
  const writingRows = blobs.put(rowsKey(fileId), rows.stream);
  const writingFaults = blobs.put(faultsKey(fileId), faults.stream);
  // When a disk write fails, the reader must not wait for it for ever.
  writingRows.catch((error: Error) => rows.fail(error));
  writingFaults.catch((error: Error) => faults.fail(error));
  await cause([writingRows, writingFaults, reading]);
  return { ...(await reading), faults: first, rowsSha256: (await writingRows).sha256 };
}

/** Waits for all; throws the error that began it. The others end with an AbortError, since one failing stops them. */
async function cause(work: readonly Promise<unknown>[]): Promise<void> {
  const errors = (await Promise.allSettled(work)).flatMap((one) =>
    one.status === "rejected" ? [one.reason as Error] : [],
  );
  const [first] = errors;
  if (first !== undefined) throw errors.find((error) => error.name !== "AbortError") ?? first;
}

/** JSON lines into a stream, in pieces of about 64 KiB; a full stream is waited for. */
class LineSink {
  readonly stream = new PassThrough({ highWaterMark: 1024 * 1024 });
  #text: string[] = [];
  #length = 0;
  #error: Error | null = null;

  constructor() {
    this.stream.on("error", (error) => {
      this.#error = error;
    });
  }

  write(value: object): Promise<void> | undefined {
    const line = JSON.stringify(value);
    this.#text.push(line, "\n");
    this.#length += line.length + 1;
    return this.#length < 65536 ? undefined : this.#flush();
  }

  end(): void {
    if (this.#text.length > 0 && this.#error === null) this.stream.write(this.#text.join(""));
    this.stream.end();
  }

  fail(error: Error): void {
    this.#error = error;
    this.stream.destroy(error);
  }

  #flush(): Promise<void> | undefined {
    if (this.#error !== null) return Promise.reject(this.#error);
    const text = this.#text.join("");
    this.#text = [];
    this.#length = 0;
    if (this.stream.write(text)) return undefined;
    return new Promise((resolve, reject) => {
      const drained = (): void => {
        this.stream.off("close", closed);
        resolve();
      };
      const closed = (): void => {
        this.stream.off("drain", drained);
        reject(this.#error ?? new Error("The blob stream was closed while rows were written."));
      };
      this.stream.once("drain", drained);
      this.stream.once("close", closed);
    });
  }
}

function verdict(fileId: string, report: DataReport): { status: "processed" | "error"; statusDetails: string | null } {
  if (report.numFaults === 0 && report.numRows === 0) {
    return {
      status: "error",
      statusDetails: `The file holds no row: expected at least ${minTrainingRows} to train on. Check that the right file was uploaded.`,
    };
  }
  if (report.numFaults === 0) return { status: "processed", statusDetails: null };
  const shown = report.faults.slice(0, 3).map(sentence).join("\n");
  const count = `${report.numFaults} ${report.numFaults === 1 ? "fault" : "faults"} in ${report.numRows} ${report.numRows === 1 ? "row" : "rows"}, ${report.numUsable} usable.`;
  const more = report.numFaults > 3 ? `\nAll ${report.numFaults} faults: /api/data/${fileId}/faults` : "";
  return { status: "error", statusDetails: `${count}\n${shown}${more}` };
}
