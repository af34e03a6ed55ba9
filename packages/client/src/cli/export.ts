/** `export` and `models export`: a tuned model's files into a folder, whole or not at all. */
import { randomBytes } from "node:crypto";
import { mkdir, open, readdir, readFile, rename, rm } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import {
  type ExportFormat,
  type ExportQuantize,
  type ExportReport,
  exportReportName,
  exportReportSchema,
} from "@fettle/contract";
import type { TarEntry } from "../tar.js";
import type { Context } from "./context.js";
import { CliError, exitCodes } from "./exit.js";
import { bytes, printable } from "./text.js";

export interface Asked {
  out: string;
  merged?: boolean;
  format?: ExportFormat;
  quantize?: ExportQuantize;
  prune?: number;
}

export async function exportToFolder(context: Context, model: string, asked: Asked): Promise<number> {
  const { out, merged = false, format, quantize, prune } = asked;
  const folder = resolve(out);
  await requireRoom(folder);
  context.draw(merged ? `  Merging ${model} …` : `  Asking for ${model} …`);
  const doing = (what: string): void => context.draw(`  ${printable(what)} …`);
  const exported = await context.client.exportModel(model, {
    merged,
    ...(format !== undefined && { format }),
    ...(quantize !== undefined && { quantize }),
    ...(prune !== undefined && { prune }),
    doing,
    signal: context.signal,
  });
  if (merged && !exported.merged)
    context.say(`${printable(model)} was tuned whole: there is nothing to merge. It is exported as it is.`);
  const files = await writeFolder(context, folder, exported.files);
  const total = files.reduce((sum, file) => sum + file.bytes, 0);
  context.say(`  ${files.length} files, ${bytes(total)}, are in ${folder}`);
  const report = format === undefined ? null : await readReport(folder);
  for (const line of report === null ? [] : comparison(report)) context.say(`  ${printable(line)}`);
  context.result({ model, folder, merged: exported.merged, files, ...(report && { report }) }, folder);
  return exitCodes.ok;
}

/** Null: a server of another version tells it in another way; the file is there all the same. */
async function readReport(folder: string): Promise<ExportReport | null> {
  const text = await readFile(join(folder, exportReportName), "utf8").catch(() => "null");
  try {
    return exportReportSchema.parse(JSON.parse(text));
  } catch {
    return null;
  }
}

function comparison({ sample, rows, positions, before, after, speed, vllm, notes }: ExportReport): string[] {
  const percent = (share: number): string => `${(share * 100).toFixed(1)} %`;
  const of = sample === "held_out" ? "rows the run held out" : "texts that come with Fettle";
  const lines = [
    `Loaded in a fresh process and compared on ${rows} ${of}: same answer at ${percent(after.agreement)} of ${positions} positions`,
  ];
  if (after.max_abs_diff !== null)
    lines.push(`largest difference of a logit to what was to be written: ${after.max_abs_diff.toPrecision(2)}`);
  lines.push(`largest difference of a logit to the tuned model: ${after.max_abs_change.toPrecision(2)}`);
  if (sample === "held_out") {
    lines.push(
      `loss ${before.loss.toFixed(4)} before, ${after.loss.toFixed(4)} after; accuracy ${percent(before.accuracy)} before, ${percent(after.accuracy)} after`,
    );
    for (const [name, value] of Object.entries(before.metrics).filter(([one]) => one !== "accuracy"))
      lines.push(`${name} ${value.toPrecision(4)} before, ${after.metrics[name]?.toPrecision(4) ?? "?"} after`);
  }
  if (speed !== null)
    lines.push(
      `${speed.before_ms.toFixed(1)} ms before, ${speed.after_ms.toFixed(1)} ms after: ${speed.gain.toFixed(2)} times as fast (median of ${speed.runs})`,
    );
  if (vllm !== null) lines.push(`vLLM, in that folder: ${vllm}`);
  return [...lines, ...notes];
}

/** A folder that is not there, or is empty. */
async function requireRoom(folder: string): Promise<void> {
  const names = await readdir(folder).catch((error: unknown) => {
    if (codeOf(error) === "ENOENT") return [];
    throw notWritable(folder, error);
  });
  if (names.length === 0) return;
  throw new CliError(
    "conflict",
    `${folder} holds ${names.length} files already, such as ${printable(names[0] ?? "")}. Give a folder that is empty or not there.`,
    exitCodes.conflict,
  );
}

interface Written {
  name: string;
  bytes: number;
}

/** Beside the folder first, so that what is there under its name is complete. */
async function writeFolder(context: Context, folder: string, files: AsyncIterable<TarEntry>): Promise<Written[]> {
  const partial = `${folder}.partial-${randomBytes(6).toString("hex")}`;
  const written: Written[] = [];
  try {
    await local(partial, () => mkdir(partial, { recursive: true }));
    for await (const file of files) {
      await writeFile(context, join(partial, file.name), file);
      written.push({ name: file.name, bytes: file.bytes });
    }
    // The archive may have ended in order just as Ctrl-C came.
    context.signal.throwIfAborted();
    await local(folder, () => rename(partial, folder));
    return written;
  } catch (error) {
    await rm(partial, { recursive: true, force: true });
    throw error;
  }
}

async function writeFile(context: Context, path: string, file: TarEntry): Promise<void> {
  const out = await local(path, async () => {
    await mkdir(dirname(path), { recursive: true });
    return open(path, "wx");
  });
  try {
    let done = 0;
    for await (const chunk of file.content) {
      await local(path, () => out.writeFile(chunk));
      done += chunk.byteLength;
      context.draw(`  ${file.name}: ${bytes(done)} of ${bytes(file.bytes)}`);
    }
    await local(path, () => out.sync());
  } finally {
    await out.close();
  }
}

/** Faults of this disk, told as such. */
async function local<T>(path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw notWritable(path, error);
  }
}

function notWritable(path: string, error: unknown): CliError {
  const code = codeOf(error);
  if (code === "ENOSPC" || code === "EDQUOT")
    return new CliError(
      "disk_full",
      `No space left for ${path}; nothing of the export was kept. Free space, then export again.`,
      exitCodes.failed,
    );
  return new CliError(
    "folder_not_writable",
    `${path} cannot be written (${code || String(error)}). Give another folder with --out.`,
    exitCodes.failed,
  );
}

const codeOf = (error: unknown): string => (error instanceof Error && "code" in error ? String(error.code) : "");
