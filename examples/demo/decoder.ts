/** Decoder, chat: support messages to strict JSON, tuned against the same model with a zero-shot and a few-shot prompt. */
import { generateTriage, type TriageRow, toChatRow } from "../triage/generate.js";
import { Laps, type PartReport, type Stage } from "./part.js";
import { percent } from "./share.js";
import { fewShot, type Message, tunedPrompt, zeroShot } from "./triage-prompts.js";
import { scoreTriages, type TriageScore } from "./triage-score.js";
import { tune } from "./tune.js";

export const decoderModel = "smollm2-135m-instruct";
const defaultSize = { seed: 7, numTrain: 556, numHeldOut: 44 };
const numExamples = 3;
/** The longest right answer has 28. */
const maxTokens = 32;
/** As many as the server answers at a time. */
const atOnce = 16;

export async function runDecoder(stage: Stage, size = defaultSize): Promise<PartReport> {
  const { talk } = stage;
  talk.title("Decoder: support message to strict JSON");
  const laps = new Laps();
  const { train, heldOut } = await generateTriage(size);
  const templates = new Set(train.map(({ group }) => group)).size;
  talk.say(
    `${train.length} messages from ${templates} templates to train; ${heldOut.length} from templates never trained on to test`,
  );
  laps.end("data");
  const scores: Record<string, TriageScore> = {};
  const measure = async (name: string, model: string, prompt: (row: TriageRow) => Message[]): Promise<void> => {
    const answers = await askAll(stage, { model, prompts: heldOut.map(prompt), name });
    scores[name] = scoreTriages(
      answers,
      heldOut.map(({ triage }) => triage),
    );
  };
  await measure("zero-shot prompt", decoderModel, zeroShot);
  laps.end("zero_shot");
  await measure("few-shot prompt", decoderModel, fewShot(train, numExamples));
  laps.end("few_shot");
  const tuned = await tune(stage, {
    baseModel: decoderModel,
    rows: train.map((row) => ({ ...toChatRow(row), group: row.group })),
    filename: "triage.jsonl",
    suffix: "triage",
    seed: size.seed,
    method: "lora",
    hyperparameters: { n_epochs: 1, batch_size: 8, learning_rate: 1e-3, lora_dropout: 0 },
  });
  laps.end("tune");
  await measure("tuned", tuned.model, tunedPrompt);
  laps.end("evaluate");
  show(stage, scores);
  const verdict = judge(scores);
  talk.say(verdict);
  return {
    part: "decoder",
    base_model: decoderModel,
    tuned_model: tuned.model,
    job: tuned.jobId,
    rows: { train: train.length, test: heldOut.length },
    results: scores,
    seconds: { ...laps.seconds, training: tuned.seconds.training },
    verdict,
    example: await answerOne(stage, tuned.model),
  };
}

/** Greedy answers in the order of the prompts; a few are asked at the same time. */
async function askAll(
  { client, talk, signal }: Stage,
  input: { model: string; prompts: Message[][]; name: string },
): Promise<string[]> {
  const answers: string[] = [];
  const queue = [...input.prompts.entries()];
  let told = Date.now();
  const worker = async (): Promise<void> => {
    for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
      const [row, messages] = next;
      const completion = await client.chat.completions.create(
        { model: input.model, messages, temperature: 0, max_completion_tokens: maxTokens },
        { signal },
      );
      answers[row] = completion.choices[0]?.message.content ?? "";
      if (Date.now() - told < 5000) continue;
      told = Date.now();
      talk.say(`  ${input.name}: ${input.prompts.length - queue.length} of ${input.prompts.length} asked`);
    }
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
  talk.say(
    `${input.name}: all ${input.prompts.length} answered; the first says ${JSON.stringify(answers[0]?.slice(0, 110))}`,
  );
  return answers;
}

function show({ talk }: Stage, scores: Record<string, TriageScore>): void {
  const names = Object.keys(scores);
  const rows: [string, (score: TriageScore) => string][] = [
    ["valid JSON", (score) => percent(score.valid_json)],
    ["strict shape", (score) => percent(score.valid_shape)],
    ["product", (score) => percent(score.product)],
    ["urgency", (score) => percent(score.urgency)],
    ["language", (score) => percent(score.language)],
    ["summary", (score) => percent(score.summary)],
    ["all four", (score) => percent(score.all_fields)],
  ];
  talk.table(
    ["exact match [95 %]", ...names],
    rows.map(([name, cell]) => [name, ...Object.values(scores).map(cell)]),
  );
}

function judge(scores: Record<string, TriageScore>): string {
  const { tuned, ...prompts } = scores;
  const best = Math.max(...Object.values(prompts).map(({ all_fields }) => all_fields.value));
  const mine = tuned?.all_fields.value ?? 0;
  return `Verdict: on templates it never saw, the tuned model gets all four fields right in ${(100 * mine).toFixed(0)} % of the messages; the better prompt in ${(100 * best).toFixed(0)} %.`;
}

async function answerOne({ client, talk, signal }: Stage, model: string): Promise<PartReport["example"]> {
  const row = {
    message: "Hallo, seit heute Morgen stürzt die App auf meinem Pixel ständig ab. Bitte sofort helfen!",
  } as TriageRow;
  const completion = await client.chat.completions.create(
    { model, messages: tunedPrompt(row), temperature: 0, max_completion_tokens: maxTokens },
    { signal },
  );
  const answer = completion.choices[0]?.message.content ?? "";
  talk.say(`asked ${model}: "${row.message}" -> ${answer}`);
  return { request: row.message, answer };
}
