/** The files of a run that server and trainer share. */
import {
  closeSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  statSync,
  writeSync,
} from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { join } from "node:path";
import { type TrainerEvent, trainerEventSchema } from "@fettle/contract";
import { z } from "zod";
import { AppError } from "../domain/error.js";

/** Read at most this much of events.jsonl at once; one line may be up to `maxLineBytes`. */
const chunkBytes = 1024 * 1024;
const maxLineBytes = 16 * 1024 * 1024;

const pidFileSchema = z.object({
  where: z.string(),
  pid: z.number().int().positive(),
  start: z.string(),
  attempt: z.number().int(),
  /** Where this attempt's words begin in stderr.log. */
  stderrFrom: z.number().int(),
});
export type PidFile = z.infer<typeof pidFileSchema>;

export interface RunFolder {
  path: string;
  spec: string;
  events: string;
  pid: string;
  stderr: string;
}

export function runFolder(runsFolder: string, runId: string): RunFolder {
  if (!/^[A-Za-z0-9_-]{1,128}$/.test(runId))
    throw new AppError("internal_error", `"${runId.slice(0, 140)}" is not a run id.`);
  const path = join(runsFolder, runId);
  return {
    path,
    spec: join(path, "spec.json"),
    events: join(path, "events.jsonl"),
    pid: join(path, "pid.json"),
    stderr: join(path, "stderr.log"),
  };
}

/** Whole or not at all, and on disk when this returns. */
export function writeJson(path: string, value: unknown): void {
  const partial = `${path}.partial`;
  const file = openSync(partial, "w", 0o600);
  try {
    writeSync(file, `${JSON.stringify(value, null, 2)}\n`);
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
  renameSync(partial, path);
}

export const makeFolder = (folder: RunFolder): void => void mkdirSync(folder.path, { recursive: true, mode: 0o700 });

/** Null when no trainer was started yet, or the file is damaged. */
export function readPidFile(folder: RunFolder): PidFile | null {
  try {
    return pidFileSchema.parse(JSON.parse(readFileSync(folder.pid, "utf8")));
  } catch {
    return null;
  }
}

const startedFromSchema = z.object({ base_model: z.object({ path: z.string() }) });

/** Folder of the base model that the newest run began from. Null when there is no run, or its spec is damaged. */
export function newestBase(runsFolder: string): string | null {
  try {
    const runs = readdirSync(runsFolder, { withFileTypes: true }).filter((entry) => entry.isDirectory());
    const specs = runs.flatMap(({ name }) => {
      const path = join(runsFolder, name, "spec.json");
      const facts = statSync(path, { throwIfNoEntry: false });
      return facts === undefined ? [] : [{ path, startedMs: facts.mtimeMs }];
    });
    const newest = specs.reduce((one, other) => (other.startedMs > one.startedMs ? other : one));
    return startedFromSchema.parse(JSON.parse(readFileSync(newest.path, "utf8"))).base_model.path;
  } catch {
    return null;
  }
}

export interface EventsRead {
  events: TrainerEvent[];
  /** Behind the last complete line read. */
  offset: number;
  /** When the file last grew, milliseconds since 1970; null when it is not there. */
  lastSignOfLife: number | null;
}

/** Complete lines from `offset` on. A last line without its end is left for the next call. */
export async function readEventLines(path: string, offset: number): Promise<EventsRead> {
  const file = await open(path, "r").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return null;
    throw error;
  });
  if (file === null) return { events: [], offset, lastSignOfLife: null };
  try {
    const { mtimeMs, size } = await file.stat();
    const lines = size > offset ? await readLines(file, { offset, size }) : Buffer.alloc(0);
    return { events: parseLines(lines, offset), offset: offset + lines.length, lastSignOfLife: mtimeMs };
  } finally {
    await file.close();
  }
}

/** Bytes up to and with the last line end found; widens the window when one line is longer. */
async function readLines(file: FileHandle, range: { offset: number; size: number }): Promise<Buffer> {
  for (let window = chunkBytes; ; window = maxLineBytes) {
    const buffer = Buffer.alloc(Math.min(window, range.size - range.offset));
    const { bytesRead } = await file.read(buffer, 0, buffer.length, range.offset);
    const end = buffer.subarray(0, bytesRead).lastIndexOf(10);
    if (end >= 0) return buffer.subarray(0, end + 1);
    if (bytesRead < window) return Buffer.alloc(0);
    // Longer than any event: passed over in pieces, each told as unreadable.
    if (window === maxLineBytes) return buffer.subarray(0, bytesRead);
  }
}

function parseLines(bytes: Buffer, offset: number): TrainerEvent[] {
  const events: TrainerEvent[] = [];
  for (let from = 0; from < bytes.length; ) {
    const end = bytes.indexOf(10, from);
    const until = end < 0 ? bytes.length : end;
    if (until > from) events.push(parseLine(bytes.toString("utf8", from, until), offset + from));
    from = until + 1;
  }
  return events;
}

/** A complete line that is no event is told in the run's log, and never stops the run. */
function parseLine(line: string, at: number): TrainerEvent {
  try {
    return trainerEventSchema.parse(JSON.parse(line));
  } catch {
    const message = `The trainer wrote a line that is no event (byte ${at} of events.jsonl): ${line.slice(0, 200)}`;
    return { type: "log", seq: 0, attempt: 0, time: 0, level: "warn", message, data: { byte: at } };
  }
}
