import { expect, it } from "vitest";
import { judge } from "../../examples/demo/encoder.js";
import { clock, narrator } from "../../examples/demo/narrator.js";
import { share } from "../../examples/demo/share.js";
import { fewShot, tunedPrompt, zeroShot } from "../../examples/demo/triage-prompts.js";
import { scoreTriages } from "../../examples/demo/triage-score.js";
import { generateTriage, toChatRow } from "../../examples/triage/generate.js";
import type { Triage } from "../../examples/triage/triage.js";

it("scores triage answers by hand-counted shares", () => {
  const wanted: Triage = { product: "api", urgency: "low", language: "en", summary: "API key is refused" };
  const answers = [
    JSON.stringify(wanted),
    JSON.stringify({ ...wanted, urgency: "high" }),
    JSON.stringify({ ...wanted, product: "printer" }),
    `Sure! ${JSON.stringify(wanted)}`,
  ];
  const score = scoreTriages(answers, [wanted, wanted, wanted, wanted]);
  const values = Object.fromEntries(
    Object.entries(score).map(([name, part]) => [name, typeof part === "number" ? part : part.value]),
  );
  expect(values).toEqual({
    num_rows: 4,
    valid_json: 0.75,
    valid_shape: 0.5,
    product: 0.5,
    urgency: 0.5,
    language: 0.75,
    summary: 0.75,
    all_fields: 0.25,
  });
});

it("gives Wilson's interval", () => {
  const { value, interval } = share(8, 10);
  expect(value).toBe(0.8);
  expect(interval.map((end) => Number(end.toFixed(4)))).toEqual([0.4902, 0.9433]);
  expect(share(0, 0).interval).toEqual([0, 1]);
});

it("asks the tuned model as it was trained, and the base model with examples from training rows alone", async () => {
  const { train, heldOut } = await generateTriage({ seed: 7, numTrain: 100, numHeldOut: 5 });
  const [row] = heldOut;
  if (row === undefined) throw new Error("no held-out row");
  expect(tunedPrompt(row)).toEqual(toChatRow(row).messages.slice(0, 2));
  expect(zeroShot(row)).toHaveLength(2);
  const messages = fewShot(train, 3)(row);
  expect(messages).toHaveLength(8);
  const trained = new Set(train.map(({ message }) => message));
  expect(
    messages
      .slice(1, -1)
      .filter(({ role }) => role === "user")
      .every(({ content }) => trained.has(content)),
  ).toBe(true);
  expect(JSON.stringify(messages)).not.toContain(JSON.stringify(row.triage));
});

it("says in the verdict when the intervals overlap", () => {
  const metrics = (accuracy: number, accuracy_interval: [number, number]) => ({
    labels: ["ham", "spam"],
    num_rows: 100,
    accuracy,
    accuracy_interval,
    macro_f1: 0,
    macro_f1_interval: [0, 1] as [number, number],
    confusion: [],
    num_unknown: 0,
  });
  expect(judge(metrics(0.97, [0.95, 0.99]), metrics(0.9, [0.86, 0.93]))).toBe(
    "Verdict: the tuned encoder is 7.0 points better than TF-IDF + logistic regression.",
  );
  expect(judge(metrics(0.9, [0.86, 0.93]), metrics(0.91, [0.87, 0.94]))).toContain(
    "1.0 points worse than TF-IDF + logistic regression; the intervals overlap",
  );
});

it("narrates with a clock and aligned tables", () => {
  const said: string[] = [];
  const talk = narrator((text) => said.push(text), Date.now());
  talk.say("hello");
  talk.table(["", "score"], [["tuned", "1"]]);
  expect(said).toEqual([" 0:00  hello\n", "\n           score\n    -----  -----\n    tuned      1\n\n"]);
  expect(clock(187_000)).toBe(" 3:07");
});
