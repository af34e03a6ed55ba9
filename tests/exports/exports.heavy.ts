/** Exported models, asked by llama.cpp and in a browser what the trainer answered. Run by `npm run test:exports`. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { askLlama, type InBrowser, type Models, makeModels, openBrowser } from "./readers.js";

const folder = mkdtempSync(join(tmpdir(), "fettle-exports-"));
let models: Models;
let browser: InBrowser | null;
beforeAll(async () => {
  models = await makeModels(folder);
  browser = await openBrowser(folder);
});
afterAll(async () => {
  await browser?.close();
  rmSync(folder, { recursive: true });
});

const tell = (line: string): boolean => process.stdout.write(`  ${line}\n`);
const largest = (some: number[], others: number[]): number =>
  some.reduce((worst, value, index) => Math.max(worst, Math.abs(value - (others[index] ?? Number.NaN))), 0);

describe("llama.cpp", () => {
  it.each([0, 1, 2])(
    "reads GGUF number %i of three: f16 writes what ours writes, the others are measured",
    async (n) => {
      const { text } = models;
      const exported = text.gguf[n];
      if (exported === undefined) throw new Error("not exported");
      const { quantize, after } = exported.report;
      const written = await askLlama(join(exported.folder, "model.gguf"), text);
      const same = written.filter(({ answer }, index) => answer === text.answers[index]).length;
      tell(
        `${quantize}: ${same} of ${written.length} greedy answers are ours; same token at ${(after.agreement * 100).toFixed(1)} % of positions`,
      );
      // Prompts are cut alike whatever the weights are.
      expect(written.map(({ tokens }) => tokens)).toEqual(text.prompts.map(({ ids }) => ids));
      if (quantize === "f16") expect(written.map(({ answer }) => answer)).toEqual(text.answers);
      else expect(same).toBeGreaterThan(0);
    },
  );

  it("had something to say", () => {
    expect(new Set(models.text.answers).size).toBeGreaterThan(5);
    expect(models.text.answers.every((answer) => answer.length > 3)).toBe(true);
  });
});

// Where no Chromium is, its own package cannot bring one: the browser is the system's.
describe("onnxruntime-web in Chromium", () => {
  it.each(["text", "classes", "pairs"] as const)("answers as the model does: %s", async (kind) => {
    if (browser === null) throw new Error("there is no Chromium here: install your system's package of it");
    const [exported] = models[kind].onnx;
    if (exported === undefined) throw new Error("not exported");
    let worst = 0;
    for (const { feeds, logits } of models[kind].cases) {
      const found = await browser.run(exported.folder, feeds);
      expect(found).toHaveLength(logits.length);
      worst = Math.max(worst, largest(found, logits));
    }
    tell(`${kind}, Chromium ${browser.version}: largest difference of a logit ${worst.toExponential(1)}`);
    expect(worst).toBeLessThan(1e-3);
  });

  it("answers by an int8 graph too, and how far off it is is told", async () => {
    if (browser === null) throw new Error("there is no Chromium here: install your system's package of it");
    const exported = models.classes.onnx[1];
    if (exported === undefined) throw new Error("not exported");
    let [worst, same] = [0, 0];
    for (const { feeds, logits } of models.classes.cases) {
      const found = await browser.run(exported.folder, feeds);
      worst = Math.max(worst, largest(found, logits));
      same += Number(top(found) === top(logits));
    }
    tell(
      `int8: largest difference of a logit ${worst.toExponential(1)}, same class ${same} of ${models.classes.cases.length}`,
    );
    expect(worst).toBeGreaterThan(0);
    expect(worst).toBeLessThan(0.5);
  });
});

const top = (values: number[]): number => values.indexOf(Math.max(...values));
