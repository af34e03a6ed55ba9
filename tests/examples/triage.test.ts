import { describe, expect, it } from "vitest";
import { generateTriage, toChatRow } from "../../examples/triage/generate.js";
import { languages, products, triageSchema, urgencies } from "../../examples/triage/triage.js";

const options = { seed: 7, numTrain: 640, numHeldOut: 120 };

describe("triage generator", () => {
  it("gives the same rows for the same seed and others for another", async () => {
    const [first, again, other] = await Promise.all([
      generateTriage(options),
      generateTriage(options),
      generateTriage({ ...options, seed: 8 }),
    ]);
    expect(again).toEqual(first);
    expect(other.train).not.toEqual(first.train);
  });

  it("never trains on a held-out template, nor repeats a message", async () => {
    const { train, heldOut } = await generateTriage({ ...options, numTrain: 2000 });
    const trained = new Set(train.map((row) => row.group));
    expect(trained.size).toBe(90);
    expect(heldOut.filter((row) => trained.has(row.group))).toEqual([]);
    const messages = [...train, ...heldOut].map((row) => row.message);
    expect(new Set(messages).size).toBe(2120);
  });

  it("answers in the strict shape, and covers every product, urgency and language in both parts", async () => {
    const { train, heldOut } = await generateTriage(options);
    for (const part of [train, heldOut]) {
      const triages = part.map((row) => triageSchema.parse(JSON.parse(toChatRow(row).messages[2]?.content ?? "")));
      expect(new Set(triages.map((triage) => triage.product))).toEqual(new Set(products));
      expect(new Set(triages.map((triage) => triage.urgency))).toEqual(new Set(urgencies));
      expect(new Set(triages.map((triage) => triage.language))).toEqual(new Set(languages));
    }
  });

  it("fills every slot, and says in the summary what the message says", async () => {
    const { train, heldOut } = await generateTriage(options);
    for (const row of [...train, ...heldOut]) {
      expect(row.message + row.triage.summary).not.toMatch(/[{}]/);
      for (const value of row.triage.summary.match(/\d+|CSV|PDF|Excel|JSON|XML|Visa|PayPal|iPhone|Pixel/g) ?? []) {
        expect(row.message.toLowerCase()).toContain(value.toLowerCase());
      }
    }
  });
});
