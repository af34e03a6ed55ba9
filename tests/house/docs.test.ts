/** README.md shows a saved run, or nothing: never a figure that no run printed. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";

interface DocsDemo {
  demoBlock(demo: unknown): string;
  withoutMachine(demo: unknown): Record<string, unknown>;
}
const root = join(import.meta.dirname, "..", "..");
const path = new URL("../../scripts/docs-demo.mjs", import.meta.url).href;
const { demoBlock, withoutMachine } = (await import(path)) as DocsDemo;

const demo = {
  version: 1,
  seconds: { downloads: 10, total: 200 },
  url: "http://127.0.0.1:4141",
  home: "/somewhere",
  parts: [
    {
      part: "encoder",
      base_model: "minilm-l6-v2",
      rows: { train: 800, test: 300 },
      results: {
        majority: { accuracy: 0.5, interval: [0.4, 0.6], exact: { value: 0.1 } },
        tuned: { accuracy: 0.98, interval: [0.97, 0.99], exact: { value: 0.875 } },
      },
      seconds: { train: 61 },
      verdict: "Worth it.",
      example: { request: "Dear friend\nsend money", answer: "spam" },
    },
  ],
};

describe("the demo block of README.md", () => {
  it("has every candidate with the figures that all of them have", () => {
    const block = demoBlock(demo);
    expect(block).toContain("|  | accuracy | exact |");
    expect(block).toContain("| majority | 0.500 | 0.100 |");
    expect(block).toContain("| tuned | 0.980 | 0.875 |");
    expect(block).toContain("Worth it.");
    expect(block).toContain("> Dear friend\n> send money\nspam");
  });

  it("names no address and no folder of the machine that ran it", () => {
    expect(Object.keys(withoutMachine(demo))).toEqual(["version", "seconds", "parts"]);
  });

  it("stands between its markers", () => {
    expect(readFileSync(join(root, "README.md"), "utf8")).toMatch(/<!-- demo:begin -->\n[\s\S]*<!-- demo:end -->/);
  });
});
