/** `chat`, `classify` and `predict`: asking a model from the terminal. */
import { createInterface } from "node:readline/promises";
import type { Prediction, RequestMessage } from "@fettle/contract";
import type { ChatRequest } from "../fettle.js";
import type { Context } from "./context.js";
import { exitCodes, usageError } from "./exit.js";
import { printable, table } from "./text.js";

export interface ChatOptions {
  system?: string;
  temperature?: number;
  maxTokens?: number;
  seed?: number;
}

/** With a prompt (or piped stdin) one answer; at a terminal without one, a conversation until Ctrl-D. */
export async function chat(
  context: Context,
  { model, prompt }: { model: string; prompt: string | undefined },
  options: ChatOptions,
): Promise<number> {
  const request = (messages: RequestMessage[]): ChatRequest => ({
    model,
    messages,
    ...(options.temperature !== undefined && { temperature: options.temperature }),
    ...(options.maxTokens !== undefined && { max_completion_tokens: options.maxTokens }),
    ...(options.seed !== undefined && { seed: options.seed }),
  });
  const system: RequestMessage[] = options.system === undefined ? [] : [{ role: "system", content: options.system }];
  const text = prompt ?? (context.stdin.isTTY ? undefined : (await context.stdin.readAll()).trimEnd());
  if (text === "") throw usageError("The prompt is empty: give it as the second argument, or pipe it in.");
  if (text !== undefined) {
    await answer(context, request([...system, { role: "user", content: text }]));
    return exitCodes.ok;
  }
  if (context.json) throw usageError("--json needs a prompt: give it as the second argument, or pipe it in.");
  return converse(context, (messages) => request([...system, ...messages]));
}

/** Prints the answer as it comes; with `--json` the whole completion as one document. */
async function answer(context: Context, request: ChatRequest): Promise<string> {
  if (context.json) {
    const completion = await context.client.chat.complete(request, { signal: context.signal });
    context.result(completion, "");
    return completion.choices[0]?.message.content ?? "";
  }
  let whole = "";
  for await (const chunk of context.client.chat.stream(request, { signal: context.signal })) {
    const piece = chunk.choices[0]?.delta.content ?? "";
    whole += piece;
    context.terminal.stdout(printable(piece));
  }
  context.terminal.stdout("\n");
  return whole;
}

async function converse(context: Context, request: (messages: RequestMessage[]) => ChatRequest): Promise<number> {
  const messages: RequestMessage[] = [];
  const lines = createInterface({ input: process.stdin, output: process.stderr });
  context.say("Ctrl-D ends the conversation.");
  try {
    lines.setPrompt("> ");
    lines.prompt();
    for await (const line of lines) {
      if (line.trim() !== "") {
        messages.push({ role: "user", content: line });
        messages.push({ role: "assistant", content: await answer(context, request(messages)) });
      }
      lines.prompt();
    }
  } finally {
    lines.close();
  }
  return exitCodes.ok;
}

/** Texts from the arguments, else one a line from piped stdin. */
async function textsOf(context: Context, texts: string[], verb: string): Promise<string[]> {
  const input =
    texts.length > 0
      ? texts
      : context.stdin.isTTY
        ? []
        : (await context.stdin.readAll()).split("\n").filter((line) => line.trim() !== "");
  if (input.every((text) => text === ""))
    throw usageError(`No text to ${verb}: give texts as arguments, or pipe them in, one a line.`);
  return input;
}

export async function classify(
  context: Context,
  { model, texts }: { model: string; texts: string[] },
): Promise<number> {
  const input = await textsOf(context, texts, "classify");
  const result = await context.client.classify({ model, input }, { signal: context.signal });
  const rows = result.data.map((one) => [
    printable(one.label),
    one.probability.toFixed(4),
    printable((input[one.index] ?? "").replaceAll("\n", " ")).slice(0, 80),
  ]);
  context.result(result, table(["LABEL", "PROBABILITY", "TEXT"], rows));
  return exitCodes.ok;
}

export interface PredictOptions {
  question?: string;
  prompt?: string;
}

export async function predict(
  context: Context,
  { model, texts }: { model: string; texts: string[] },
  { question, prompt }: PredictOptions,
): Promise<number> {
  if (question !== undefined && prompt !== undefined)
    throw usageError("--question and --prompt are of different models: give one of them.");
  // A context has lines of its own.
  const piped = question !== undefined && texts.length === 0 && !context.stdin.isTTY;
  const read = await textsOf(context, piped ? [(await context.stdin.readAll()).trim()] : texts, "predict");
  const input = read.map((text) =>
    question !== undefined ? { question, context: text } : prompt !== undefined ? { prompt, text } : text,
  );
  const result = await context.client.predict({ model, input }, { signal: context.signal });
  const rows = result.data.flatMap(({ index, prediction }) =>
    rowsOf(prediction).map((cells) => [...cells, printable((read[index] ?? "").replaceAll("\n", " ")).slice(0, 80)]),
  );
  const [first] = result.data;
  context.result(result, table([...headOf(first?.prediction), "TEXT"], rows));
  return exitCodes.ok;
}

const headOf = (prediction: Prediction | undefined): string[] =>
  prediction === undefined || "score" in prediction
    ? ["SCORE"]
    : "entities" in prediction
      ? ["LABEL", "PROBABILITY", "CHARACTERS", "ENTITY"]
      : ["SCORE", "CHARACTERS", "ANSWER"];

/** A line for what was found; a dash where nothing was. */
function rowsOf(prediction: Prediction): string[][] {
  if ("score" in prediction) return [[prediction.score.toFixed(4)]];
  if ("answer" in prediction) {
    const { answer } = prediction;
    return [
      answer === null
        ? ["-", "-", "-"]
        : [answer.score.toFixed(4), `${answer.start}-${answer.end}`, printable(answer.text)],
    ];
  }
  if (prediction.entities.length === 0) return [["-", "-", "-", "-"]];
  return prediction.entities.map(({ label, probability, start, end, text }) => [
    printable(label),
    probability.toFixed(4),
    `${start}-${end}`,
    printable(text),
  ]);
}
