/** The measurement of the processor, with the trainer that ships and with programs that stand in for Python. */
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { beforeEach, expect, onTestFinished, test } from "vitest";
import { measureProcessor, processorName } from "../../src/startup/processor.js";

const root = fileURLToPath(new URL("../../../..", import.meta.url));
let home: string;
let warned: string[];
beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), "fettle-processor-"));
  warned = [];
  onTestFinished(() => rmSync(home, { recursive: true }));
});

const measure = (python: string, name = processorName(2)) =>
  measureProcessor({
    home,
    python,
    environment: { PATH: process.env["PATH"] ?? "", PYTHONPATH: join(root, "trainer", "src"), OMP_NUM_THREADS: "2" },
    name,
    log: { warn: (_, message) => void warned.push(message) },
  });
const kept = (): { machine: string; torch: string; flops: number } =>
  JSON.parse(readFileSync(join(home, "machine.json"), "utf8"));

/** Answers like Python, and counts its probes. */
function standIn(answer: string, torch = "9.9"): string {
  const path = join(home, "python");
  const probes = join(home, "probes");
  writeFileSync(path, `#!/bin/sh\n[ "$1" = -c ] && { echo ${torch}; exit; }\necho x >> ${probes}\n${answer}\n`, {
    mode: 0o700,
  });
  return path;
}
const probes = (): number => readFileSync(join(home, "probes"), "utf8").trim().split("\n").length;
const said = (gflops: number, devices: object[] = []): string =>
  `echo '${JSON.stringify({ gflops: { float32: gflops, bfloat16: 3 }, fastest_dtype: "float32", devices })}'`;

test("the trainer's own probe is measured and kept for this home alone", { timeout: 60_000 }, async () => {
  const processor = measure(join(root, ".venv", "bin", "python"));
  expect(processor.product()).toBeNull();
  await processor.measured;
  expect(warned).toEqual([]);
  // From an old core to many fast ones.
  expect(processor.product()).toBeGreaterThan(1e9);
  expect(processor.product()).toBeLessThan(1e14);
  expect(kept()).toMatchObject({ machine: processorName(2), flops: processor.product() });
  expect(kept().torch).toMatch(/^\d+\.\d+/);
  expect(statSync(join(home, "machine.json")).mode & 0o777).toBe(0o600);
});

test("it is measured once, and again for another processor, another torch, or a torn file", async () => {
  const product = async (python: string, name = "one"): Promise<number | null> => {
    const processor = measure(python, name);
    await processor.measured;
    return processor.product();
  };
  expect(await product(standIn(said(100)))).toBe(100e9);
  expect(await product(standIn(said(200)))).toBe(100e9);
  expect(probes()).toBe(1);
  expect(await product(standIn(said(200)), "two")).toBe(200e9);
  expect(await product(standIn(said(300), "10.0"), "two")).toBe(300e9);
  writeFileSync(join(home, "machine.json"), '{"machine":"two","torch":"10.0","flops":-1}');
  expect(await product(standIn(said(400), "10.0"), "two")).toBe(400e9);
  expect(kept()).toEqual({ machine: "two", torch: "10.0", flops: 400e9 });
});

test.each([
  ["a probe that fails", "exit 3"],
  ["a probe that says nonsense", "echo '{}'"],
  ["a probe without a figure", 'echo \'{"gflops":{},"fastest_dtype":"float32","devices":[]}\''],
])("%s leaves it unmeasured, with a warning", async (_, answer) => {
  const processor = measure(standIn(answer));
  await processor.measured;
  expect(processor.product()).toBeNull();
  expect(warned).toEqual(["could not measure the processor; the first estimates assume a usual one"]);
});

test("with a GPU the processor says nothing about training", async () => {
  const processor = measure(standIn(said(100, [{ name: "gpu" }])));
  await processor.measured;
  expect(processor.product()).toBeNull();
  expect(warned).toEqual([]);
});

test("closing ends a measurement without a word", async () => {
  const processor = measure(standIn("exec sleep 60"));
  const before = performance.now();
  await processor.close();
  expect(performance.now() - before).toBeLessThan(10_000);
  expect([processor.product(), warned]).toEqual([null, []]);
});
