/**
 * The server alone, models scripted: requests per second, tail latency, memory; large uploads.
 *
 *   npm run bench -- server [--json] [--seconds 8] [--connections 32] [--mebibytes 1024]
 *
 * The server is a process of its own with the embedded database; the load comes from this one, on the same machine.
 */
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { load, type LoadFigures } from "./server/load.js";
import { type Measured, startMeasured } from "./server/process.js";
import { sendForm, sendInParts, sendJson } from "./server/upload.js";

export interface ServerOptions {
  seconds: number;
  connections: number;
  /** Size of each upload; over 512 the multipart one is sent as several files of at most 512 MiB, the limit of one. */
  mebibytes: number;
}
interface UploadFigures {
  mebibytes: number;
  seconds: number;
  peak_rss_mebibytes: number;
}
export interface ServerFigures {
  ready_ms: number;
  jobs_listed: number;
  job_list: LoadFigures;
  chat_completion: LoadFigures;
  rss_mebibytes: { idle: number; after_load: number };
  upload_multipart: UploadFigures;
  upload_parts: UploadFigures;
}

const mebibyte = 1024 * 1024;
const maxFileMebibytes = 512;
const jobCount = 100;
const inMebibytes = (bytes: number): number => Math.round(bytes / mebibyte);
const say = (text: string): void => void process.stderr.write(`${text}\n`);

export async function run(options: ServerOptions): Promise<ServerFigures> {
  const server = await startMeasured();
  try {
    const idle = server.rssBytes();
    // Before the load: what the uploads cost is then not hidden under the heap that the load leaves.
    say(`uploads of ${options.mebibytes} MiB`);
    const upload_multipart = await measured(server, options, () => multipart(server, options.mebibytes));
    const upload_parts = await measured(server, options, async () => [
      await sendInParts(server, options.mebibytes * mebibyte),
    ]);
    await makeJobs(server);
    say(`job list, ${options.seconds} s`);
    const job_list = await load({ method: "GET", path: "/v1/fine_tuning/jobs?limit=20" }, { ...server, ...options });
    say(`chat completion, ${options.seconds} s`);
    const body = JSON.stringify({ model: "tiny", messages: [{ role: "user", content: "Hello" }], max_tokens: 1 });
    const chat_completion = await load(
      { method: "POST", path: "/v1/chat/completions", body },
      { ...server, ...options },
    );
    return {
      ready_ms: Math.round(server.readyMs),
      jobs_listed: jobCount,
      job_list,
      chat_completion,
      rss_mebibytes: { idle: inMebibytes(idle), after_load: inMebibytes(server.rssBytes()) },
      upload_multipart,
      upload_parts,
    };
  } finally {
    await server.close();
  }
}

async function makeJobs(server: Measured): Promise<void> {
  const line = JSON.stringify({
    messages: [
      { role: "user", content: "q" },
      { role: "assistant", content: "a" },
    ],
  });
  const form = new FormData();
  form.set("purpose", "fine-tune");
  form.set("file", new File([Array.from({ length: 20 }, () => line).join("\n")], "train.jsonl"));
  const response = await fetch(`${server.url}/v1/files`, {
    method: "POST",
    headers: { authorization: `Bearer ${server.key}` },
    body: form,
  });
  const { id } = (await response.json()) as { id: string };
  for (let index = 0; index < jobCount; index += 1) {
    await sendJson(server, "/v1/fine_tuning/jobs", {
      body: { model: "huge", training_file: id, metadata: { index: String(index) } },
    });
  }
}

async function multipart(server: Measured, mebibytes: number): Promise<string[]> {
  const ids: string[] = [];
  for (let left = mebibytes; left > 0; left -= maxFileMebibytes) {
    ids.push(
      (
        await sendForm(server, {
          path: "/v1/files",
          field: "file",
          purpose: "user_data",
          bytes: Math.min(left, maxFileMebibytes) * mebibyte,
        })
      ).id,
    );
  }
  return ids;
}

async function measured(
  server: Measured,
  { mebibytes }: ServerOptions,
  send: () => Promise<string[]>,
): Promise<UploadFigures> {
  server.forgetPeak();
  const started = performance.now();
  const ids = await send();
  const seconds = Number(((performance.now() - started) / 1000).toFixed(2));
  const peak_rss_mebibytes = inMebibytes(server.peakRssBytes());
  for (const id of ids) await sendJson(server, `/v1/files/${id}`, { method: "DELETE" });
  return { mebibytes, seconds, peak_rss_mebibytes };
}

function lines(figures: ServerFigures): string[] {
  const speed = (name: string, { requests_per_second, p50_ms, p99_ms, connections, failures }: LoadFigures): string =>
    `${name.padEnd(18)} ${requests_per_second} requests/s, p50 ${p50_ms} ms, p99 ${p99_ms} ms over ${connections} connections, ${failures} failed`;
  const upload = (name: string, { mebibytes, seconds, peak_rss_mebibytes }: UploadFigures): string =>
    `${name.padEnd(18)} ${mebibytes} MiB in ${seconds} s, peak memory of the server ${peak_rss_mebibytes} MiB`;
  return [
    `ready              ${figures.ready_ms} ms after the start of the process`,
    speed("job list", figures.job_list),
    speed("chat completion", figures.chat_completion),
    `memory             ${figures.rss_mebibytes.idle} MiB idle, ${figures.rss_mebibytes.after_load} MiB after the load`,
    upload("upload, multipart", figures.upload_multipart),
    upload("upload, parts", figures.upload_parts),
  ];
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      json: { type: "boolean", default: false },
      seconds: { type: "string", default: "8" },
      connections: { type: "string", default: "32" },
      mebibytes: { type: "string", default: "1024" },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  if (values.help) return say("npm run bench -- server [--json] [--seconds 8] [--connections 32] [--mebibytes 1024]");
  const figures = await run({
    seconds: Number(values.seconds),
    connections: Number(values.connections),
    mebibytes: Number(values.mebibytes),
  });
  process.stdout.write(
    values.json ? `${JSON.stringify({ bench: "server", ...figures })}\n` : `${lines(figures).join("\n")}\n`,
  );
}

if (process.argv[1] !== undefined && resolve(process.argv[1]) === import.meta.filename) await main();
