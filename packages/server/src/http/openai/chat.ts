import {
  type ChatCompletion,
  type ChatCompletionChunk,
  chatCompletionChunkSchema,
  chatCompletionSchema,
  createChatCompletionSchema,
  type CreateChatCompletion,
} from "@fettle/contract";
import { openChat } from "../../app/chat.js";
import type { ChoicePart } from "../../app/chat-choices.js";
import type { TokenLogprob } from "../../app/ports.js";
import { endpoint, type Router } from "../endpoint.js";
import { type CollectedChoice, collect, following, streamAnswer } from "./answer.js";
import { toSeconds } from "./present.js";

/** Streams carry `chatCompletionChunkSchema`; the document names both shapes. */
const response = chatCompletionSchema.or(chatCompletionChunkSchema);

export function chatRoutes(router: Router): void {
  const { deps } = router;
  endpoint(
    router,
    {
      method: "post",
      path: "/v1/chat/completions",
      summary: "Answer a chat, whole or as a stream",
      tag: "Inference",
      role: "member",
      body: createChatCompletionSchema,
      response,
    },
    async ({ caller, body, context, signal }) => {
      const abort = following(signal);
      const { parts } = await openChat(deps, { projectId: caller.projectId, request: body, signal: abort.signal });
      const head = {
        id: deps.ids.make("chatcmpl-"),
        created: toSeconds(deps.clock.now()),
        model: body.model,
        system_fingerprint: "fettle",
      };
      const choicesPerPrompt = body.n ?? 1;
      if (!body.stream) {
        const { choices, usage } = await collect(parts, choicesPerPrompt);
        return {
          object: "chat.completion",
          ...head,
          choices: choices.map((choice, index) => choiceObject(choice, { index, body })),
          usage,
        } satisfies ChatCompletion;
      }
      const includeUsage = body.stream_options?.include_usage === true;
      const chunk = (choices: ChatCompletionChunk["choices"]): ChatCompletionChunk => ({
        object: "chat.completion.chunk",
        ...head,
        choices,
        ...(includeUsage && { usage: null }),
      });
      return streamAnswer({
        parts,
        choicesPerPrompt,
        includeUsage,
        requestId: context.var.requestId,
        abort,
        chunkOf: (part) => chunk([chunkChoice(part, body)]),
        usageChunk: (usage) => ({ ...chunk([]), usage }),
      });
    },
  );
}

function choiceObject(
  choice: CollectedChoice,
  { index, body }: { index: number; body: CreateChatCompletion },
): ChatCompletion["choices"][number] {
  return {
    index,
    message: { role: "assistant", content: choice.text, refusal: null },
    logprobs: body.logprobs ? { content: choice.logprobs.map(logprobObject), refusal: null } : null,
    finish_reason: choice.finishReason,
  };
}

function chunkChoice({ index, chunk }: ChoicePart, body: CreateChatCompletion): ChatCompletionChunk["choices"][number] {
  if (chunk.type === "start")
    return { index, delta: { role: "assistant", content: "", refusal: null }, logprobs: null, finish_reason: null };
  if (chunk.type === "end") return { index, delta: {}, logprobs: null, finish_reason: chunk.finishReason };
  return {
    index,
    delta: { content: chunk.text },
    logprobs: body.logprobs ? { content: chunk.logprobs.map(logprobObject), refusal: null } : null,
    finish_reason: null,
  };
}

const logprobObject = (entry: TokenLogprob) => ({
  token: entry.token,
  logprob: entry.logprob,
  bytes: entry.bytes,
  top_logprobs: entry.top.map(({ token, logprob, bytes }) => ({ token, logprob, bytes })),
});
