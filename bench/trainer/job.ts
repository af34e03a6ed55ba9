/**
 * A job of 1,000 rows through the API of a running server, beside one script that does the same with the peer:
 * start-up, tokenising, one epoch, saving, and the proof that what was saved answers as what was trained.
 */
import { randomBytes } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { Fettle, hasEnded } from "@fettle/client";
import { fileFromPath } from "@fettle/client/node";
import { trainerEventSchema } from "@fettle/contract";
import { startServer } from "../../packages/server/src/main.js";
import { root, say } from "./environment.js";
import { measured, type Setting } from "./sides.js";
import { type StartRow, startRow, type Times } from "./start-row.js";
import { type Flags, hyperparametersOf } from "./works.js";

export const jobRows = 1000;
const settleMs = 20_000;
const pollMs = 50;

export interface JobPeer {
  python: string;
  flags: Flags;
  kind: StartRow["peer_flags"];
}

/** A server that has been up for a while has a trainer ready where memory allows; the job is measured on that. */
export async function jobRow(setting: Setting, peer: JobPeer, pairs: number): Promise<StartRow> {
  const { name } = setting.work;
  const home = mkdtempSync(join(tmpdir(), "fettle-job-"));
  const key = randomBytes(24).toString("hex");
  writeFileSync(
    join(home, "fettle.yaml"),
    `models:\n  - { name: base, path: ${join(setting.folder, "bundled")} }\nruns: { num_threads: ${setting.numThreads} }\n`,
  );
  const { PATH, HOME } = process.env;
  const env = { PATH, HOME, FETTLE_HOME: home, FETTLE_PORT: "0", FETTLE_ADMIN_KEY: key };
  const server = await startServer({ env, cwd: home });
  const runs: { ours: Times[]; peers: Times[] } = { ours: [], peers: [] };
  try {
    const client = new Fettle({ baseUrl: server.url, apiKey: key });
    for (let pair = 0; pair < pairs; pair += 1) {
      runs.peers.push(await peersJob(setting, peer));
      await setTimeout(settleMs);
      runs.ours.push(await ourJob(setting, client, home));
      const [mine, theirs] = [runs.ours.at(-1), runs.peers.at(-1)];
      say(`  job of ${name}, pair ${pair + 1}: ${mine?.seconds.toFixed(1)} and ${theirs?.seconds.toFixed(1)} s`);
    }
  } finally {
    await server.close();
    rmSync(home, { recursive: true, force: true });
  }
  const peerName = setting.work.peer;
  return startRow(
    { work: "job", of: name, start: "warm", peer: peerName, peer_flags: peer.kind },
    runs.ours,
    runs.peers,
  );
}

/** From the first byte sent to the answer that the run has succeeded. */
async function ourJob({ work, folder, seed }: Setting, client: Fettle, home: string): Promise<Times> {
  const { per_device_train_batch_size, num_train_epochs, learning_rate, max_length } = hyperparametersOf(work);
  const begin = performance.now();
  const upload = async (name: string): Promise<string> =>
    (await client.files.upload(await fileFromPath(join(folder, name)))).id;
  const training_file = await upload("rows.jsonl");
  // Without it a tenth of the rows would be held out, and fewer learnt than by the peer.
  const validation_file = await upload("held_out.jsonl");
  const made = await client.runs.create({
    model: "base",
    training_file,
    validation_file,
    task: work.task,
    method: work.method,
    seed,
    hyperparameters: { per_device_train_batch_size, num_train_epochs, learning_rate, max_length },
  });
  let run = made;
  while (!hasEnded(run)) {
    await setTimeout(pollMs);
    run = await client.runs.get(made.id);
  }
  const seconds = (performance.now() - begin) / 1000;
  if (run.status !== "succeeded") throw new Error(`the job ended as ${run.status}: ${JSON.stringify(run.error)}`);
  const lines = readFileSync(join(home, "blobs", "runs", run.id, "events.jsonl"), "utf8")
    .trimEnd()
    .split("\n");
  const finished = lines
    .map((line) => trainerEventSchema.parse(JSON.parse(line)))
    .find((event) => event.type === "finished");
  return {
    seconds,
    startUpSeconds: null,
    numTokens: finished?.trained_tokens ?? null,
    peakRssBytes: finished?.peak_rss_bytes ?? null,
  };
}

async function peersJob(setting: Setting, { python, flags }: JobPeer): Promise<Times> {
  const { work, folder, numThreads, seed } = setting;
  const [config, result, output] = ["job.json", "job-result.json", "peer-job"].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  rmSync(output, { recursive: true, force: true });
  mkdirSync(output, { recursive: true });
  const files = { model: join(folder, "bundled"), rows: join(folder, "rows.jsonl"), output_dir: output };
  const settings = { labels: work.labels, hyperparameters: hyperparametersOf(work), flags, seed };
  writeFileSync(config, JSON.stringify({ ...files, ...settings, num_threads: numThreads }));
  const found = await measured(setting, [python, join(root, "bench/trainer/peer_job.py"), config, result]);
  const { num_tokens, peak_rss_bytes } = JSON.parse(readFileSync(result, "utf8")) as {
    num_tokens: number;
    peak_rss_bytes: number;
  };
  return { seconds: found.seconds, startUpSeconds: null, numTokens: num_tokens, peakRssBytes: peak_rss_bytes };
}
