/** `data import`, `data ls`, `data show`; and the upload that `train` begins with. */
import type { DataObject } from "@fettle/contract";
import { FettleError } from "../error.js";
import { fileFromPath } from "../node.js";
import type { Context } from "./context.js";
import { CliError, exitCodes, tell } from "./exit.js";
import { bytes, moment, printable, table } from "./text.js";

/** Uploads the file and waits until the server has read it. A file with faults comes back all the same. */
export async function importFile(context: Context, path: string): Promise<DataObject> {
  const source = await openFile(path);
  const onProgress = (sent: number): void =>
    context.draw(`  Uploading ${source.name}: ${bytes(sent)} of ${bytes(source.size)}`);
  const file = await context.client.files.upload(source, { onProgress, signal: context.signal });
  context.draw(`  Reading ${source.name} …`);
  const data = await context.client.data.waitUntilRead(file.id, { signal: context.signal });
  context.say(`  ${printable(source.name)} is ${data.id}: ${summaryOf(data)}`);
  for (const notice of data.report?.notices ?? []) context.say(`  note: ${printable(notice)}`);
  return data;
}

async function openFile(path: string) {
  try {
    return await fileFromPath(path);
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code;
    const what = code === "ENOENT" ? `No file at ${path}` : `${path} cannot be read (${code})`;
    throw new CliError(
      "file_not_readable",
      `${what}. You are in ${process.cwd()}; give the path of a JSONL or CSV file.`,
      code === "ENOENT" ? exitCodes.notFound : exitCodes.failed,
    );
  }
}

/** Throws FettleError `invalid_training_file` with the faults when no run could use the file. */
export function requireUsable(data: DataObject): void {
  if (data.status !== "error") return;
  const { report } = data;
  // The lines after the first repeat the faults, for clients that have nothing else; here they are told in full.
  const [count] = (data.status_details ?? "").split("\n");
  throw new FettleError(count || `${data.filename} cannot be used for training.`, {
    status: 400,
    code: "invalid_training_file",
    faults: (report?.faults ?? []).map((fault) => ({
      rule: fault.rule,
      message: fault.message,
      fix: fault.fix,
      ...(fault.line !== undefined && { line: fault.line }),
      ...(fault.column !== undefined && { column: fault.column }),
      ...(fault.path !== undefined && { path: fault.path }),
    })),
  });
}

function summaryOf({ report, status }: DataObject): string {
  if (report === null) return status;
  const labels = report.labels === null ? "" : `, ${Object.keys(report.labels).length} labels`;
  const faults = report.num_faults > 0 ? `, ${report.num_faults} faults` : "";
  return `${report.num_usable} of ${report.num_rows} rows usable${report.kind === null ? "" : ` (${report.kind})`}${labels}${faults}`;
}

export async function dataImport(context: Context, { file }: { file: string }): Promise<number> {
  const data = await importFile(context, file);
  if (data.status === "error") {
    try {
      requireUsable(data);
    } catch (error) {
      context.say(tell(error)?.text ?? String(error));
    }
    context.result(data, data.id);
    return exitCodes.failed;
  }
  context.result(data, data.id);
  context.say(`Train on it: fettle train ${data.id} --model NAME`);
  return exitCodes.ok;
}

export async function dataList(context: Context): Promise<number> {
  const { data, has_more } = await context.client.data.list({ limit: 1000 });
  const rows = data.map((one) => [
    one.id,
    one.status,
    bytes(one.bytes),
    moment(one.created_at),
    printable(one.filename),
    summaryOf(one),
  ]);
  context.result(
    { data, has_more },
    data.length > 0
      ? table(["DATA", "STATUS", "SIZE", "CREATED", "FILE", "ROWS"], rows)
      : "No data yet. Add some: fettle data import data.jsonl",
  );
  return exitCodes.ok;
}

export async function dataShow(context: Context, { id }: { id: string }): Promise<number> {
  const data = await context.client.data.get(id);
  const lines = [
    `${data.id}  ${printable(data.filename)}  ${bytes(data.bytes)}  ${data.status}`,
    `rows: ${summaryOf(data)}`,
  ];
  if (data.status_details) lines.push(`details: ${printable(data.status_details)}`);
  for (const [label, count] of Object.entries(data.report?.labels ?? {}))
    lines.push(`label ${printable(label)}: ${count}`);
  for (const notice of data.report?.notices ?? []) lines.push(`note: ${printable(notice)}`);
  for (const fault of data.report?.faults ?? []) {
    const place = [fault.line && `line ${fault.line}`, fault.column && `column ${fault.column}`, fault.path]
      .filter(Boolean)
      .join(", ");
    lines.push(`fault ${place}: ${printable(fault.message)} ${fault.fix}`);
  }
  context.result(data, lines.join("\n"));
  return exitCodes.ok;
}
