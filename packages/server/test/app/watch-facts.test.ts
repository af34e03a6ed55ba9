/** What the events of a trainer say of its memory, as the run keeps it and as its log tells it. */
import type { TrainerEvent } from "@fettle/contract";
import { describe, expect, it } from "vitest";
import { translateEvents } from "../../src/app/watch-events.js";
import { foldFacts, noFacts } from "../../src/app/watch-facts.js";
import { predictedBytes } from "../../src/domain/job.js";
import { freshId, sampleRun } from "../store/samples.js";

const parts = { process: 4e8, weights: 5e8, gradients: 1, moments: 2, activations: 3e8, logits: 0, products: 1e8 };
const data = {
  type: "data",
  num_train_rows: 4,
  num_validation_rows: 0,
  num_train_tokens: 9,
  num_label_tokens: 3,
  num_truncated: 0,
  refused: [],
  num_refused: 0,
  total_steps: 2,
};
const finished = {
  type: "finished",
  step: 2,
  best_step: 2,
  trained_tokens: 18,
  artefact_path: "artefact",
  artefact_sha256: "0",
  peak_rss_bytes: 1.25e9,
  train_seconds: 1,
  early_stopped: false,
};
const told = (...events: object[]): TrainerEvent[] =>
  events.map((event, index) => ({ seq: index + 1, attempt: 1, time: index, ...event }) as TrainerEvent);

describe("a run's memory", () => {
  it("is expected before the first step and measured at the end", () => {
    const facts = noFacts();
    foldFacts(facts, told({ ...data, memory: parts }));
    expect(facts.memory).toEqual({ predicted: parts, peakBytes: null });
    expect(predictedBytes({ memory: { predicted: parts, peakBytes: null } })).toBe(1_300_000_003);

    const events = told({ ...data, memory: parts }, finished);
    foldFacts(facts, events);
    expect(facts.memory).toEqual({ predicted: parts, peakBytes: 1.25e9 });
    const ids = { make: freshId, bytes: (n: number) => new Uint8Array(n) };
    const messages = translateEvents(ids, sampleRun({}), { facts, events }).events.map(({ message }) => message);
    expect(messages.at(-1)).toBe(
      "Training ended at step 2; the saved model is being verified. It held 1.25 GB of memory at the peak; 1.30 GB were expected",
    );
  });

  it("is measured alone where nothing was expected: on a GPU, and by trainers from before", () => {
    for (const memory of [{ memory: null }, {}]) {
      const facts = noFacts();
      foldFacts(facts, told({ ...data, ...memory }));
      expect(facts.memory).toBeNull();
      foldFacts(facts, told(finished));
      expect(facts.memory).toEqual({ predicted: null, peakBytes: 1.25e9 });
    }
  });
});
