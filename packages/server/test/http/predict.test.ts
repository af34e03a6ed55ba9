import type { Task } from "@fettle/contract";
import { afterAll, beforeAll, expect, test } from "vitest";
import { tunedRun } from "./tuned.js";
import { createWorld, type World } from "./world.js";

let world: World;
beforeAll(async () => {
  world = await createWorld();
});
afterAll(() => world.close());

test("predict asks with the fields of the task's rows and gives what the model says", async () => {
  const send = (model: string, input: unknown) => world.send("POST", "/api/predict", { body: { model, input } });
  const made = async (task: Task): Promise<string> =>
    (await tunedRun(world, { baseModel: "minilm", family: "encoder", task, method: "lora" })).model;
  const scorer = await made("regression");
  expect((await send(scorer, ["fine", { text: "fine", text_pair: "good" }])).json).toEqual({
    object: "list",
    model: scorer,
    data: [0, 1].map((index) => ({ index, prediction: { score: 2.5 } })),
    usage: { prompt_tokens: 8, total_tokens: 8 },
  });
  const finder = await made("question_answering");
  const answer = { start: 0, end: 5, text: "Paris", score: 3.5 };
  world.inference.prediction = { answer };
  expect((await send(finder, { question: "Where?", context: "Paris" })).json.data[0].prediction).toEqual({ answer });
  await send(await made("ranking"), { prompt: "Hello", text: "Hi" });
  world.inference.prediction = { entities: [{ start: 0, end: 5, text: "Paris", label: "city", probability: 0.9 }] };
  const tagger = await made("token_classification");
  expect((await send(tagger, "Paris")).json.data[0].prediction).toEqual(world.inference.prediction);
  expect(world.inference.asked).toEqual([
    [{ text: "fine" }, { text: "fine", second: "good" }],
    [{ text: "Where?", second: "Paris" }],
    [{ text: "Hello", second: "Hi" }],
    [{ text: "Paris" }],
  ]);
  expect((await send(finder, ["Paris"])).json.error).toMatchObject({
    code: "invalid_request",
    param: "input[0]",
    message:
      "input[0] has text: a model tuned for question_answering expects question and context. Send the fields its rows had.",
  });
  expect((await send(tagger, { text: "a", text_pair: "b" })).json.error.param).toBe("input");
  expect((await send(tagger, {})).json.error.message).toContain("input has no field");
  expect((await send(tagger, [])).status).toBe(400);
  expect((await send(tagger, { text: "a", score: 1 })).status).toBe(400);
  for (const other of [await made("classification"), "minilm"])
    expect((await send(other, "x")).json.error).toMatchObject({ code: "unsupported_parameter", param: "model" });
  const body = { model: tagger, messages: [{ role: "user", content: "Hi" }] };
  expect((await world.send("POST", "/v1/chat/completions", { body })).json.error.message).toContain(
    "Use POST /api/predict.",
  );
});
