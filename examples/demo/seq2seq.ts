/** Encoder-decoder, translation: English compiler messages to German. The base is made here, once, from the same kind of text. */
import { spawn } from "node:child_process";
import { access } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { z } from "zod";
import { fetchPackage } from "../data/npm-package.js";
import {
  baseRows,
  type Message,
  type MessageData,
  messagesPackage,
  prompt,
  readMessages,
  splitMessages,
  targetLanguage,
} from "../translate/messages.js";
import type { Narrator } from "./narrator.js";
import { Laps, type PartReport, type Stage } from "./part.js";
import { type Python, runModule, withRowFiles } from "./python.js";
import { tune } from "./tune.js";

export const seq2seqModel = "messages-t5";
const size = { seed: 7, numTest: 150 };
const maxTokens = 96;
const atOnce = 8;
const makeBaseScript = fileURLToPath(new URL("../translate/make_base.py", import.meta.url));

const metricsSchema = z.object({
  num_rows: z.number(),
  chrf: z.number(),
  chrf_interval: z.tuple([z.number(), z.number()]),
  bleu: z.number(),
  bleu_interval: z.tuple([z.number(), z.number()]),
  exact: z.number(),
  exact_interval: z.tuple([z.number(), z.number()]),
});
type Metrics = z.infer<typeof metricsSchema>;

/** Makes the base model where it is not there yet: several minutes, once. */
export async function makeBase(input: { talk: Narrator; python: Python; cache: string; dest: string }): Promise<void> {
  const { talk, python, cache, dest } = input;
  if (
    await access(join(dest, "config.json")).then(
      () => true,
      () => false,
    )
  )
    return;
  talk.say(`making the base model ${seq2seqModel}: a small T5, from text alone (once; some minutes)`);
  const { train } = await loadMessages(cache, talk);
  await withRowFiles([baseRows(train)], (rows = "") =>
    runTalking(python, [makeBaseScript, rows, dest], (line) => talk.say(`  ${line}`)),
  );
  talk.say(`base model ${seq2seqModel} is ready`);
}

export async function runSeq2seq(stage: Stage): Promise<PartReport> {
  const { talk } = stage;
  talk.title("Encoder-decoder: English compiler messages to German");
  const laps = new Laps();
  const { train, test } = await loadMessages(stage.cache, talk);
  talk.say(`${train.length} messages to train, ${test.length} to test, none of one pattern in both`);
  laps.end("data");
  const before = await measure(stage, { name: "before", model: seq2seqModel, test });
  laps.end("before");
  const tuned = await tune(stage, {
    baseModel: seq2seqModel,
    rows: train.map(({ english, translations, group }) => ({
      prompt: prompt(targetLanguage, english),
      completion: translations.de ?? "",
      group,
    })),
    filename: "messages.jsonl",
    suffix: "german",
    seed: size.seed,
    method: "full",
    hyperparameters: { n_epochs: 12, batch_size: 32, learning_rate: 1e-3, max_length: 128 },
  });
  laps.end("tune");
  const after = await measure(stage, { name: "after", model: tuned.model, test });
  laps.end("evaluate");
  show(stage, { before, after });
  const verdict = judge(before, after);
  talk.say(verdict);
  return {
    part: "seq2seq",
    base_model: seq2seqModel,
    tuned_model: tuned.model,
    job: tuned.jobId,
    rows: { train: train.length, test: test.length },
    results: { before, after },
    seconds: { ...laps.seconds, training: tuned.seconds.training },
    verdict,
    example: await answerOne(stage, tuned.model),
  };
}

async function loadMessages(cache: string, talk: Narrator): Promise<MessageData> {
  const tarball = await fetchPackage(messagesPackage, join(cache, "downloads"), talk.say);
  return splitMessages(readMessages(tarball), size);
}

async function measure(
  stage: Stage,
  input: { name: string; model: string; test: readonly Message[] },
): Promise<Metrics> {
  const got = await translateAll(stage, input);
  const rows = input.test.map(({ translations }, row) => ({ wanted: translations.de ?? "", got: got[row] ?? "" }));
  return withRowFiles([rows], async (path = "") =>
    metricsSchema.parse(
      await runModule(stage.python, "fettle_trainer.baselines", ["score", path, "--as", "translation"]),
    ),
  );
}

async function translateAll(
  stage: Stage,
  { name, model, test }: { name: string; model: string; test: readonly Message[] },
): Promise<string[]> {
  const answers: string[] = [];
  const queue = [...test.entries()];
  let told = Date.now();
  const worker = async (): Promise<void> => {
    for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
      const [row, { english }] = next;
      answers[row] = await translate(stage, model, english);
      if (Date.now() - told < 5000) continue;
      told = Date.now();
      stage.talk.say(`  ${name}: ${test.length - queue.length} of ${test.length} translated`);
    }
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
  stage.talk.say(`${name}: all ${test.length} translated; "${test[0]?.english}" -> "${answers[0]}"`);
  return answers;
}

async function translate({ client, signal }: Stage, model: string, english: string): Promise<string> {
  const messages = [{ role: "user" as const, content: prompt(targetLanguage, english) }];
  const completion = await client.chat.completions.create(
    { model, messages, temperature: 0, max_completion_tokens: maxTokens },
    { signal },
  );
  return completion.choices[0]?.message.content ?? "";
}

const figure = (value: number, [low, high]: readonly [number, number]): string =>
  `${value.toFixed(1)} [${low.toFixed(1)}, ${high.toFixed(1)}]`;

function show({ talk }: Stage, results: Record<string, Metrics>): void {
  talk.table(
    ["", "chrF [95 %]", "BLEU [95 %]", "exact"],
    Object.entries(results).map(([name, metrics]) => [
      name,
      figure(metrics.chrf, metrics.chrf_interval),
      figure(metrics.bleu, metrics.bleu_interval),
      `${(100 * metrics.exact).toFixed(1)} %`,
    ]),
  );
}

function judge(before: Metrics, after: Metrics): string {
  const settled = after.chrf_interval[0] > before.chrf_interval[1];
  return `Verdict: tuning moved chrF on unseen messages from ${before.chrf.toFixed(1)} to ${after.chrf.toFixed(1)}${settled ? "" : "; the intervals overlap"}. It is a small model made from ${messagesPackage.name}'s texts alone, not a general translator.`;
}

async function answerOne(stage: Stage, model: string): Promise<PartReport["example"]> {
  const request = "A file cannot have two modifiers.";
  const answer = await translate(stage, model, request);
  stage.talk.say(`asked ${model}: "${request}" -> "${answer}"`);
  return { request, answer };
}

/** Runs a script and hands on each line it prints. Throws an Error with the end of its stderr. */
async function runTalking(
  { python, env }: Python,
  args: readonly string[],
  onLine: (line: string) => void,
): Promise<void> {
  const child = spawn(python, args, { env, stdio: ["ignore", "pipe", "pipe"] });
  let stderr = "";
  child.stderr.on("data", (chunk: Buffer) => {
    stderr = (stderr + chunk.toString("utf8")).slice(-2000);
  });
  const ended = new Promise<number | null>((resolve, reject) => child.on("error", reject).on("close", resolve));
  for await (const line of createInterface({ input: child.stdout })) onLine(line);
  const code = await ended;
  if (code !== 0) throw new Error(`${args[0] ?? ""} ended with exit code ${code}: ${stderr.trim()}`);
}
