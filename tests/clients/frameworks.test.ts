/** Frameworks on top of the OpenAI contract, unmodified. */
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { embedMany, generateText, streamText } from "ai";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type ClientServer, startClientServer } from "./server.js";

let server: ClientServer;
beforeAll(async () => {
  server = await startClientServer();
});
afterAll(() => server.close());

const model = "smollm2-135m-instruct";

describe("ai + @ai-sdk/openai-compatible", () => {
  const provider = () =>
    createOpenAICompatible({ name: "fettle", baseURL: server.baseURL, apiKey: server.apiKey, includeUsage: true });

  test("generateText and streamText", async () => {
    const whole = await generateText({ model: provider()(model), prompt: "Hi", maxOutputTokens: 2, temperature: 0 });
    expect([whole.text, whole.finishReason, whole.usage.inputTokens]).toEqual(["Hello there ", "length", 7]);
    const stream = streamText({ model: provider()(model), prompt: "Hi" });
    let text = "";
    for await (const part of stream.textStream) text += part;
    expect([text, (await stream.usage).outputTokens]).toEqual(["Hello there friend", 3]);
  });

  test("embedMany", async () => {
    const { embeddings } = await embedMany({ model: provider().embeddingModel("minilm"), values: ["a", "b"] });
    expect(embeddings.map((vector) => vector.slice(0, 3))).toEqual([
      [0.5, -1, 0.25],
      [1.5, -1, 0.25],
    ]);
  });

  test("a refusal carries our message", async () => {
    await expect(generateText({ model: provider()("none-such"), prompt: "Hi", maxRetries: 0 })).rejects.toThrow(
      "does not exist",
    );
  });
});

describe("@langchain/openai", () => {
  const configuration = () => ({ baseURL: server.baseURL });

  test("ChatOpenAI: invoke and stream", async () => {
    const chat = new ChatOpenAI({ model, apiKey: server.apiKey, configuration: configuration(), temperature: 0 });
    const answer = await chat.invoke("Hi");
    expect(answer).toMatchObject({ content: "Hello there friend", usage_metadata: { total_tokens: 10 } });
    let text = "";
    for await (const chunk of await chat.stream("Hi")) text += chunk.content as string;
    expect(text).toBe("Hello there friend");
  });

  test("OpenAIEmbeddings", async () => {
    const embeddings = new OpenAIEmbeddings({ model: "minilm", apiKey: server.apiKey, configuration: configuration() });
    expect((await embeddings.embedQuery("a")).slice(0, 3)).toEqual([0.5, -1, 0.25]);
    expect(await embeddings.embedDocuments(["a", "b"])).toHaveLength(2);
  });
});
