/** The whole circle with the real trainer and a tiny random encoder: rows in, the task inferred, trained, asked. */
import { afterAll, beforeAll, expect, test } from "vitest";
import type { CreateRun, RunObject } from "@fettle/contract";
import { Fettle } from "../../packages/client/src/index.js";
import { eventually } from "../../packages/server/test/store/samples.js";
import { startTinyServer, type TinyServer } from "./tiny-server.js";

let server: TinyServer;
let client: Fettle;

beforeAll(async () => {
  server = await startTinyServer("encoder", "runs:\n  num_threads: 1\n");
  client = new Fettle({ baseUrl: server.url, apiKey: server.key });
}, 120_000);
afterAll(() => server?.close());

/** The name of the model that these rows make of the tiny one. Nothing is said but the rows and how long. */
async function tuned(rows: object[], task: string): Promise<string> {
  const run = await ended((await started(rows)).id);
  expect(run).toMatchObject({ task, method: "full" });
  return run.fine_tuned_model ?? "";
}

async function started(rows: object[], more: Partial<CreateRun> = {}): Promise<RunObject> {
  const id = await server.upload(rows);
  const hyperparameters = { num_train_epochs: 4, per_device_train_batch_size: 8, learning_rate: 0.01 };
  return client.runs.create({ model: "tiny", training_file: id, seed: 1, hyperparameters, ...more });
}

async function ended(runId: string): Promise<RunObject> {
  return eventually(
    "the end of the run",
    async () => {
      const now = await client.runs.get(runId);
      if (now.error !== null) throw new Error(JSON.stringify(now.error));
      return now.status === "succeeded" ? now : null;
    },
    120_000,
  );
}

const words = ["please", "login", "fox", "dog", "lazy", "quick", "brown", "broken"];
/** 48 texts of three words each, all different. */
const texts = Array.from({ length: 48 }, (_, n) =>
  [n % 8, (n >> 1) % 7, Math.floor(n / 8)].map((at) => words[at]).join(" "),
);
const isRefund = (n: number): boolean => n % 2 === 0;
const withWord = (text: string, n: number): string => `${isRefund(n) ? "refund" : "invoice"} ${text}`;

test("numbers come back in the unit of the rows", { timeout: 180_000 }, async () => {
  const rows = texts.map((text, n) => ({ text: withWord(text, n), score: isRefund(n) ? 900 : 100 }));
  const model = await tuned(rows, "regression");
  const { data } = await client.predict({ model, input: ["refund please", "invoice please"] });
  const [refund, invoice] = data.map(({ prediction }) => ("score" in prediction ? prediction.score : Number.NaN));
  expect(refund).toBeGreaterThan(700);
  expect(refund).toBeLessThan(1100);
  expect(invoice).toBeGreaterThan(-100);
  expect(invoice).toBeLessThan(300);
});

test("a student learns from a tuned model, which stays until it has", { timeout: 180_000 }, async () => {
  const rows = texts.map((text, n) => ({ text: withWord(text, n), label: isRefund(n) ? "refund" : "invoice" }));
  const teacher = await tuned(rows, "classification");
  const { id } = await started(rows, { teacher, method: "lora" });
  const path = `/v1/models/${encodeURIComponent(teacher)}`;
  expect((await server.send("DELETE", path)).error.code).toBe("conflict");
  const run = await ended(id);
  expect(run).toMatchObject({ teacher, task: "classification", method: "lora" });
  const events: string[] = [];
  for await (const event of client.runs.allEvents(id)) events.push(event.message);
  expect(events.join("\n")).toMatch(
    new RegExp(`The teacher ${teacher} has answered the 4\\d rows to train on, \\d+% of them as their labels say`),
  );
  const { data } = await client.classify({
    model: run.fine_tuned_model ?? "",
    input: ["refund please", "invoice please"],
  });
  expect(data.map(({ label }) => label)).toEqual(["refund", "invoice"]);
  expect((await server.send("DELETE", path)).deleted).toBe(true);
});

test("entities are found where they stand", { timeout: 180_000 }, async () => {
  const rows = texts.map((text, n) => ({
    text: `${text} ${isRefund(n) ? "refund" : "dog"}`,
    entities: isRefund(n) ? [{ start: text.length + 1, end: text.length + 7, label: "money" }] : [],
  }));
  const model = await tuned(rows, "token_classification");
  const { data } = await client.predict({ model, input: ["fox please refund", { text: "lazy dog" }] });
  expect(data.map(({ prediction }) => prediction)).toEqual([
    { entities: [{ start: 11, end: 17, label: "money", text: "refund", probability: expect.any(Number) }] },
    { entities: [] },
  ]);
});
