/** Whether bases can be kept in 4 bits: asked of the trainer that ships, and of programs that stand in for Python. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, onTestFinished, test } from "vitest";
import { fourBitsOf } from "../../src/startup/four-bits.js";

const root = fileURLToPath(new URL("../../../..", import.meta.url));
const folder = (): string => {
  const made = mkdtempSync(join(tmpdir(), "fettle-four-bits-"));
  onTestFinished(() => rmSync(made, { recursive: true }));
  return made;
};

/** Answers like Python with what lies in the file `answer`, and counts. */
function standIn(home: string): string {
  const path = join(home, "python");
  writeFileSync(path, `#!/bin/sh\necho x >> ${home}/asked\ncat ${home}/answer\n`, { mode: 0o700 });
  return path;
}
const environment = { PATH: process.env["PATH"] ?? "" };

test("the trainer that ships says what a machine without a GPU lacks", { timeout: 60_000 }, async () => {
  const lack = fourBitsOf({
    python: join(root, ".venv", "bin", "python"),
    environment: { ...environment, PYTHONPATH: join(root, "trainer", "src"), CUDA_VISIBLE_DEVICES: "" },
  });
  expect(await lack()).toBe("PyTorch sees no GPU here");
});

test("it is asked until there is no lack, and an answer that is none is an error", async () => {
  const home = folder();
  const lack = fourBitsOf({ python: standIn(home), environment });
  writeFileSync(join(home, "answer"), "Traceback");
  await expect(lack()).rejects.toThrow();
  writeFileSync(join(home, "answer"), '{"four_bits": "the package is not installed"}');
  expect(await lack()).toBe("the package is not installed");
  writeFileSync(join(home, "answer"), '{"four_bits": null}');
  expect(await lack()).toBeNull();
  expect(await lack()).toBeNull();
  expect(readFileSync(join(home, "asked"), "utf8")).toBe("x\nx\nx\n");
});
