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

interface DocsBench {
  benchBlock(saved: unknown): string;
  benchPictures(saved: unknown): Promise<Record<string, string>>;
  withBench(saved: Record<string, unknown>, printed: unknown): Record<string, { rows: { ratio: number }[] }>;
}
const benchPath = new URL("../../scripts/docs-bench.mjs", import.meta.url).href;
const { benchBlock, benchPictures, withBench } = (await import(benchPath)) as DocsBench;

const machine = { cpu: "A CPU", threads: 2, memory_bytes: 24e9, gflops: { float32: 160, bfloat16: 374 } };
const row = {
  work: "encoder",
  rows: "8 to 64 tokens, 30 in the middle",
  peer: "transformers 5 Trainer",
  peer_flags: "best",
  flags: { bf16: true, train_sampling_strategy: "group_by_length", compile: false },
  ratio: 1.5,
  ratio_range: [1.4, 1.6],
  rss_ratio: 0.5,
  loss_rel_diff: 0.0004,
  losses: { ours: [2, 1], peer: [2, 1.1] },
  tokens_per_s: 3500,
  peer_tokens_per_s: 2333,
  rss_bytes: 1e9,
  peer_rss_bytes: 2e9,
  first_step_s: 4,
  peer_first_step_s: 9,
  roofline_fraction: 0.6,
  pairs: 5,
};

describe("the benchmark's block of docs/performance.md", () => {
  const saved = withBench({}, { bench: "trainer", machine, rows: [row] });

  it("has each work with its peer's flags, range and losses", () => {
    expect(benchBlock(saved)).toContain(
      "| encoder | best: bf16, group_by_length, no compile | 3,500 | 2,333 | **1.50** [1.40, 1.60] | 1.00 | 2.00 (0.50) | 4.0 | 9.0 | 0.60 | 0.040 % |",
    );
  });

  it("replaces the same work's row and keeps the others", () => {
    const next = withBench(saved, { bench: "trainer", machine, rows: [{ ...row, ratio: 2 }] });
    expect(next["trainer"]?.rows.map(({ ratio }) => ratio)).toEqual([2]);
    const more = withBench(next, { bench: "trainer", machine, rows: [{ ...row, work: "head" }] });
    expect(more["trainer"]?.rows.map(({ ratio }) => ratio)).toEqual([2, 1.5]);
  });

  it("names each machine that figures are of", () => {
    const faster = { ...machine, gflops: { float32: 217, bfloat16: 975 } };
    const more = withBench(saved, { bench: "trainer", machine: faster, rows: [{ ...row, work: "head" }] });
    const also = withBench(more, { bench: "trainer", machine, rows: [{ ...row, work: "seq2seq" }] });
    const text = benchBlock(also);
    expect(text).toContain("Machine: 2 cores of A CPU, 24 GB; products reach 160 GFLOP/s in fp32, 374 in bf16");
    expect(text).toMatch(
      /In another run, on 2 cores of A CPU, 24 GB; products reach 217 GFLOP\/s in fp32, 975 in bf16: .*, best\./,
    );
  });

  it("keeps what was foreseen of memory apart by the type of products", () => {
    const memory = { held_out: false, parts: { weights: 1e9 }, predicted_bytes: 1e9, difference: 0.05 };
    const of = (dtype: string, peak_bytes: number) => ({ ...memory, work: "encoder", dtype, peak_bytes });
    const one = withBench(saved, { bench: "memory", machine, rows: [of("bfloat16", 1.1e9)] });
    const text = benchBlock(withBench(one, { bench: "memory", machine, rows: [of("float32", 1.2e9)] }));
    expect(text).toContain("| encoder | bf16 | weights 1.00 | 1.00 | 1.10 | +5.0 % |");
    expect(text).toContain("| encoder | fp32 | weights 1.00 | 1.00 | 1.20 | +5.0 % |");
  });

  it("draws the same picture from the same figures", async () => {
    const [first, second] = [await benchPictures(saved), await benchPictures(saved)];
    expect(first).toEqual(second);
    expect(first["pictures/ratios.svg"]).toContain("1.5x");
    expect(first["pictures/losses.svg"]).toContain("</svg>");
  });
});
