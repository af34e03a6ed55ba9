/** One fine-tuning job through the official OpenAI client: upload, create, follow to the end. */
import type OpenAI from "openai";
import { toFile } from "openai";
import { clock, type Narrator } from "./narrator.js";
import { toJsonLines } from "./python.js";

export interface TuneInput {
  baseModel: string;
  rows: readonly object[];
  filename: string;
  suffix: string;
  seed: number;
  /** OpenAI's three names or ours; what is left out is chosen by the server. */
  hyperparameters: Record<string, number | string>;
  method: "full" | "lora" | "head";
}

export interface Tuned {
  jobId: string;
  model: string;
  seconds: { upload: number; queue: number; training: number };
  trainedTokens: number;
}

interface Platform {
  client: OpenAI;
  talk: Narrator;
  signal: AbortSignal;
}

type Job = OpenAI.FineTuning.FineTuningJob;
const pollMs = 1000;
const progressMs = 5000;

/** Throws an Error when the job does not succeed. When `signal` aborts, the job is cancelled. */
export async function tune(platform: Platform, input: TuneInput): Promise<Tuned> {
  const { client, talk, signal } = platform;
  const uploadStart = performance.now();
  const body = await toFile(Buffer.from(toJsonLines(input.rows)), input.filename);
  const file = await client.files.create({ file: body, purpose: "fine-tune" }, { signal });
  const upload = (performance.now() - uploadStart) / 1000;
  talk.say(`uploaded ${input.filename}: ${input.rows.length} rows, ${(file.bytes / 1000).toFixed(0)} kB (${file.id})`);
  const created = performance.now();
  // `method` of `supervised` is Fettle's own field beside OpenAI's.
  const supervised = {
    method: input.method,
    hyperparameters: input.hyperparameters,
  } as OpenAI.FineTuning.SupervisedMethod;
  const job = await client.fineTuning.jobs.create(
    {
      model: input.baseModel,
      training_file: file.id,
      suffix: input.suffix,
      seed: input.seed,
      method: { type: "supervised", supervised },
    },
    { signal },
  );
  talk.say(`created job ${job.id}: ${input.method} of ${input.baseModel}`);
  const { ended, startedAt } = await follow(platform, job);
  if (ended.status !== "succeeded" || ended.fine_tuned_model === null) {
    throw new Error(`Job ${job.id} ended as ${ended.status}: ${ended.error?.message ?? "no reason was given"}`);
  }
  const training = (performance.now() - startedAt) / 1000;
  talk.say(`${ended.fine_tuned_model} is ready after ${training.toFixed(0)} s`);
  return {
    jobId: job.id,
    model: ended.fine_tuned_model,
    seconds: { upload, queue: (startedAt - created) / 1000, training },
    trainedTokens: ended.trained_tokens ?? 0,
  };
}

async function follow(platform: Platform, job: Job): Promise<{ ended: Job; startedAt: number }> {
  const { client, signal } = platform;
  const told = new Set<string>();
  const teller = eventTeller(platform.talk);
  let startedAt = performance.now();
  let running = false;
  try {
    for (;;) {
      const current = await client.fineTuning.jobs.retrieve(job.id, { signal });
      if (current.status === "running" && !running) {
        running = true;
        startedAt = performance.now();
      }
      const { data: events } = await client.fineTuning.jobs.listEvents(job.id, { limit: 100 }, { signal });
      for (const event of events.reverse()) {
        if (!told.has(event.id)) teller(event);
        told.add(event.id);
      }
      if (["succeeded", "failed", "cancelled"].includes(current.status)) return { ended: current, startedAt };
      await new Promise((resolve) => setTimeout(resolve, pollMs));
    }
  } catch (error) {
    if (signal.aborted) await cancel(client, job.id).catch(() => undefined);
    throw error;
  }
}

const cancelMs = 20_000;

/** Until the trainer has ended: it would otherwise work on after the demo's server is gone. */
async function cancel(client: OpenAI, jobId: string): Promise<void> {
  await client.fineTuning.jobs.cancel(jobId);
  for (const deadline = Date.now() + cancelMs; Date.now() < deadline; ) {
    if ((await client.fineTuning.jobs.retrieve(jobId)).status === "cancelled") return;
    await new Promise((resolve) => setTimeout(resolve, pollMs));
  }
}

/** Messages are told at once, except the many choices of hyperparameters; steps every few seconds. */
function eventTeller(talk: Narrator): (event: OpenAI.FineTuning.FineTuningJobEvent) => void {
  let last = 0;
  return (event) => {
    const data = (event.data ?? {}) as Record<string, unknown>;
    if (event.type !== "metrics") {
      if (!/^\w+ chosen: /.test(event.message)) talk.say(`  ${event.message}`);
      return;
    }
    const isStep = typeof data["train_loss"] === "number";
    if (isStep && data["step"] !== data["total_steps"] && Date.now() - last < progressMs) return;
    last = Date.now();
    const speed =
      typeof data["tokens_per_second"] === "number" ? `, ${data["tokens_per_second"].toFixed(0)} tokens/s` : "";
    const left =
      typeof data["eta_seconds"] === "number" ? `, about ${clock(data["eta_seconds"] * 1000).trim()} left` : "";
    talk.say(`  ${event.message}${speed}${left}`);
  };
}
