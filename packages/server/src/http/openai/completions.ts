import { type Completion, completionSchema, createCompletionSchema } from "@fettle/contract";
import type { ChoicePart } from "../../app/chat-choices.js";
import { openCompletion } from "../../app/completions.js";
import type { TokenLogprob } from "../../app/ports.js";
import { endpoint, type Router } from "../endpoint.js";
import { collect, following, streamAnswer } from "./answer.js";
import { toSeconds } from "./present.js";

export function completionRoutes(router: Router): void {
  const { deps } = router;
  endpoint(
    router,
    {
      method: "post",
      path: "/v1/completions",
      summary: "Continue a text, whole or as a stream",
      tag: "Inference",
      role: "member",
      body: createCompletionSchema,
      response: completionSchema,
    },
    async ({ caller, body, context, signal }) => {
      const abort = following(signal);
      const { parts } = await openCompletion(deps, {
        projectId: caller.projectId,
        request: body,
        signal: abort.signal,
      });
      const head = {
        id: deps.ids.make("cmpl-"),
        object: "text_completion" as const,
        created: toSeconds(deps.clock.now()),
        model: body.model,
        system_fingerprint: "fettle",
      };
      const wantsLogprobs = body.logprobs != null;
      const choicesPerPrompt = body.n ?? 1;
      if (!body.stream) {
        const { choices, usage } = await collect(parts, choicesPerPrompt);
        return {
          ...head,
          choices: choices.map(({ text, logprobs, finishReason }, index) => ({
            index,
            text,
            logprobs: wantsLogprobs ? logprobsObject(logprobs, 0) : null,
            finish_reason: finishReason,
          })),
          usage,
        } satisfies Completion;
      }
      const includeUsage = body.stream_options?.include_usage === true;
      const offsets = new Map<number, number>();
      const chunk = (choices: Completion["choices"]): Completion => ({
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
        chunkOf: (part) =>
          part.chunk.type === "start" ? null : chunk([chunkChoice(part, { wantsLogprobs, offsets })]),
        usageChunk: (usage) => ({ ...chunk([]), usage }),
      });
    },
  );
}

function chunkChoice(
  { index, chunk }: ChoicePart,
  state: { wantsLogprobs: boolean; offsets: Map<number, number> },
): Completion["choices"][number] {
  if (chunk.type !== "delta")
    return { index, text: "", logprobs: null, finish_reason: chunk.type === "end" ? chunk.finishReason : null };
  const offset = state.offsets.get(index) ?? 0;
  state.offsets.set(index, offset + chunk.text.length);
  return {
    index,
    text: chunk.text,
    logprobs: state.wantsLogprobs ? logprobsObject(chunk.logprobs, offset) : null,
    finish_reason: null,
  };
}

/** `text_offset` counts characters of the answer, from `start`. */
function logprobsObject(
  entries: TokenLogprob[],
  start: number,
): NonNullable<Completion["choices"][number]["logprobs"]> {
  let offset = start;
  const offsets = entries.map(({ token }) => {
    const here = offset;
    offset += token.length;
    return here;
  });
  return {
    tokens: entries.map(({ token }) => token),
    token_logprobs: entries.map(({ isFirst, logprob }) => (isFirst ? null : logprob)),
    top_logprobs: entries.map(({ top }) =>
      top.length === 0 ? null : Object.fromEntries(top.map(({ token, logprob }) => [token, logprob])),
    ),
    text_offset: offsets,
  };
}
