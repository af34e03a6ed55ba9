/** One run of our trainer and one of the peer, both read into the same record by the same ruler. */
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TrainerEvent, type TrainSpec, trainerEventSchema, trainSpecSchema } from "@fettle/contract";
import { ourPython, root, run } from "./environment.js";
import type { RunRecord, Step } from "./statistics.js";
import { type Flags, hyperparametersOf, type Work } from "./works.js";

export interface Setting {
  work: Work;
  /** Folder that prepare.py filled. */
  folder: string;
  numThreads: number;
  seed: number;
  /** Of the products; "auto" unless given. */
  dtype?: TrainSpec["runtime"]["dtype"];
}

interface Measured {
  started_at: number;
  seconds: number;
  peak_rss_bytes: number;
  code: number;
}

const measure = join(root, "bench/trainer/measure.py");
const ready = join(root, "bench/trainer/ready.py");
const readJson = (path: string): unknown => JSON.parse(readFileSync(path, "utf8"));

export function measured(setting: Setting, command: string[]): Promise<Measured> {
  return measuredBy(measure, setting, command);
}

async function measuredBy(ruler: string, setting: Setting, command: string[]): Promise<Measured> {
  const result = join(setting.folder, "measured.json");
  const threads = String(setting.numThreads);
  const env = {
    OMP_NUM_THREADS: threads,
    MKL_NUM_THREADS: threads,
    HF_HUB_OFFLINE: "1",
    TOKENIZERS_PARALLELISM: "false",
    PYTHONPATH: join(root, "trainer/src"),
  };
  await run(ourPython, [ruler, result, ...command], { env });
  const found = readJson(result) as Measured;
  if (found.code !== 0) throw new Error(`${command.slice(0, 4).join(" ")} ended with exit code ${found.code}`);
  return found;
}

function specOf(
  { work, folder, numThreads, seed, dtype = "auto" }: Setting,
  output: string,
  sharedCache: string | undefined,
): TrainSpec {
  const rows = join(folder, "rows.jsonl");
  return trainSpecSchema.parse({
    version: 1,
    run_id: `bench-${work.name}`,
    attempt: 1,
    task: work.task,
    method: work.method,
    base_model: {
      name: work.model,
      path: join(folder, "model"),
      family: work.family,
      adapter_path: work.method === "lora" ? join(folder, "adapter") : null,
    },
    data: {
      train_path: rows,
      train_sha256: createHash("sha256").update(readFileSync(rows)).digest("hex"),
      validation_path: join(folder, "held_out.jsonl"),
      labels: work.labels === null ? null : [...work.labels],
    },
    output_dir: output,
    hyperparameters: hyperparametersOf(work),
    seed,
    runtime: {
      device: "cpu",
      dtype,
      num_threads: numThreads,
      parallelism: "ddp",
      checkpoint_seconds: 86400,
      checkpoint_steps: 0,
      keep_checkpoints: 1,
      heartbeat_seconds: 5,
      ...(sharedCache === undefined ? {} : { cache_dir: sharedCache }),
    },
  });
}

export function readEvents(path: string): TrainerEvent[] {
  const lines = readFileSync(path, "utf8").trimEnd().split("\n");
  return lines.map((line) => trainerEventSchema.parse(JSON.parse(line)));
}

/** The spec of a run into an empty folder `ours`. */
function writeSpec(setting: Setting, sharedCache?: string): { spec: string; output: string } {
  const output = join(setting.folder, "ours");
  rmSync(output, { recursive: true, force: true });
  mkdirSync(output, { recursive: true });
  const spec = join(output, "spec.json");
  writeFileSync(spec, JSON.stringify(specOf(setting, output, sharedCache)));
  return { spec, output };
}

/** What watch_steps.py writes of some steps of our trainer. */
export interface StepProfile {
  steps: number;
  tokens: number;
  seconds: number;
  plain_seconds: number;
  parts: { part: string; kind: string; seconds: number }[];
}

export async function profileOurs(setting: Setting): Promise<StepProfile> {
  const result = join(setting.folder, "profile.json");
  await measured(setting, [ourPython, join(root, "bench/trainer/watch_steps.py"), writeSpec(setting).spec, result]);
  return readJson(result) as StepProfile;
}

/**
 * Our trainer, started as the server starts it; nothing is told to it that a user's run would not be told. `warm`: the
 * run is handed to one that was already waiting, and time counts from there; what the runs of a project share is kept
 * from one warm run to the next.
 */
export async function runOurs(setting: Setting, start: "cold" | "warm" = "cold"): Promise<RunRecord> {
  const { spec, output } = writeSpec(setting, start === "warm" ? join(setting.folder, "shared") : undefined);
  const found =
    start === "warm"
      ? await measuredBy(ready, setting, [spec])
      : await measured(setting, [ourPython, "-m", "fettle_trainer", "train", spec]);
  const events = readEvents(join(output, "events.jsonl"));
  const steps = events.flatMap((event): Step[] =>
    event.type === "step"
      ? [{ step: event.step, loss: event.train_loss, numTokens: event.num_tokens, time: event.time }]
      : [],
  );
  const evaluation = events.filter((event) => event.type === "evaluation").at(-1);
  const first = events.find((event) => event.type === "step");
  if (first === undefined) throw new Error("the run made no step");
  const firstBegan = first.time - first.num_tokens / first.tokens_per_second;
  return record(found, {
    steps,
    firstBegan,
    heldOutLoss: evaluation?.valid_loss ?? null,
    peakRssBytes: found.peak_rss_bytes,
  });
}

interface PeerResult {
  steps: { step: number; loss: number; num_tokens: number; time: number }[];
  first_began: number;
  held_out_loss: number | null;
  peak_rss_bytes: number;
  versions: Record<string, string>;
}

export interface PeerRun {
  python: string;
  flags: Flags;
  /** 0 is all of them. */
  maxSteps: number;
  evaluate: boolean;
}

export async function runPeer(
  setting: Setting,
  peer: PeerRun,
): Promise<RunRecord & { versions: Record<string, string> }> {
  const { work, folder, numThreads, seed } = setting;
  const [config, output] = [join(folder, "peer.json"), join(folder, "peer-result.json")];
  const { python, flags, maxSteps, evaluate } = peer;
  const rest = { method: work.method, task: work.task, hyperparameters: hyperparametersOf(work) };
  const folders = { folder, output_dir: join(folder, "peer") };
  writeFileSync(
    config,
    JSON.stringify({ ...rest, ...folders, flags, seed, num_threads: numThreads, max_steps: maxSteps, evaluate }),
  );
  const found = await measured(setting, [python, join(root, "bench/trainer/peer.py"), config, output]);
  const result = readJson(output) as PeerResult;
  const steps = result.steps.map(({ num_tokens, ...step }): Step => ({ ...step, numTokens: num_tokens }));
  // Its peak up to the last step: evaluating afterwards is our own addition and must not count against it.
  const facts = {
    steps,
    firstBegan: result.first_began,
    heldOutLoss: result.held_out_loss,
    peakRssBytes: result.peak_rss_bytes,
  };
  return { ...record(found, facts), versions: result.versions };
}

type Facts = Pick<RunRecord, "steps" | "heldOutLoss" | "peakRssBytes"> & { firstBegan: number };

function record({ started_at, seconds }: Measured, { firstBegan, ...facts }: Facts): RunRecord {
  const first = facts.steps[0];
  if (first === undefined) throw new Error("the run made no step");
  return {
    ...facts,
    firstStepSeconds: first.time - started_at,
    startUpSeconds: firstBegan - started_at,
    wallSeconds: seconds,
  };
}
