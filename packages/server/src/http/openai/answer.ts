/** What chat and plain completions share: collecting parts, counting tokens, and the frame of a stream. */
import type { Usage } from "@fettle/contract";
import type { ChoicePart } from "../../app/chat-choices.js";
import type { TokenLogprob } from "../../app/ports.js";
import { answerTo } from "../errors.js";
import { dataFrame, primed, sseResponse } from "../sse.js";

export interface CollectedChoice {
  text: string;
  logprobs: TokenLogprob[];
  finishReason: "stop" | "length";
}
export interface Collected {
  choices: CollectedChoice[];
  usage: Usage;
}

/** Several choices of one prompt count its tokens once (`promptsShared`), several prompts each their own. */
export class UsageCount {
  private readonly promptTokens = new Map<number, number>();
  private completionTokens = 0;

  constructor(private readonly choicesPerPrompt: number) {}

  add({ index, chunk }: ChoicePart): void {
    if (chunk.type !== "end") return;
    this.promptTokens.set(Math.floor(index / this.choicesPerPrompt), chunk.promptTokens);
    this.completionTokens += chunk.completionTokens;
  }

  total(): Usage {
    const prompt = [...this.promptTokens.values()].reduce((sum, tokens) => sum + tokens, 0);
    return {
      prompt_tokens: prompt,
      completion_tokens: this.completionTokens,
      total_tokens: prompt + this.completionTokens,
    };
  }
}

export async function collect(parts: AsyncIterable<ChoicePart>, choicesPerPrompt: number): Promise<Collected> {
  const choices: CollectedChoice[] = [];
  const count = new UsageCount(choicesPerPrompt);
  for await (const part of parts) {
    const choice = choices[part.index] ?? { text: "", logprobs: [], finishReason: "stop" };
    choices[part.index] = choice;
    if (part.chunk.type === "delta") {
      choice.text += part.chunk.text;
      choice.logprobs.push(...part.chunk.logprobs);
    }
    if (part.chunk.type === "end") choice.finishReason = part.chunk.finishReason;
    count.add(part);
  }
  return { choices, usage: count.total() };
}

export interface Streaming {
  parts: AsyncIterable<ChoicePart>;
  choicesPerPrompt: number;
  includeUsage: boolean;
  requestId: string;
  abort: AbortController;
  /** The chunk for one part, or null when it shows nothing. */
  chunkOf: (part: ChoicePart) => object | null;
  /** The last chunk, with no choices, when usage was asked for. */
  usageChunk: (usage: Usage) => object;
}

export async function streamAnswer(streaming: Streaming): Promise<Response> {
  const parts = await primed(streaming.parts);
  return sseResponse(framesOf(parts, streaming), {
    abort: streaming.abort,
    onError: (error) => dataFrame(answerTo(error, streaming.requestId).body),
  });
}

async function* framesOf(parts: AsyncIterable<ChoicePart>, streaming: Streaming): AsyncIterable<string> {
  const count = new UsageCount(streaming.choicesPerPrompt);
  for await (const part of parts) {
    count.add(part);
    const chunk = streaming.chunkOf(part);
    if (chunk !== null) yield dataFrame(chunk);
  }
  if (streaming.includeUsage) yield dataFrame(streaming.usageChunk(count.total()));
  yield "data: [DONE]\n\n";
}

/** A controller that also follows the request: the client leaving ends the generation. */
export function following(signal: AbortSignal): AbortController {
  const controller = new AbortController();
  if (signal.aborted) controller.abort();
  else signal.addEventListener("abort", () => controller.abort(), { once: true });
  return controller;
}
