/** What is set aside before runs share the rest. */
import { expect, test } from "vitest";
import { sharesOf } from "../../src/startup/machine.js";

const config = (keepTrainerReady: boolean | "auto") => ({
  runs: {
    maxConcurrent: 2,
    checkpointSeconds: 60,
    numThreads: 3,
    keepTrainerReady,
    layers: "auto",
    pricePerHour: 0,
  } as const,
  inference: { memoryBytes: "auto", maxQueue: 1, idleSeconds: 1 } as const,
});

test("a trainer that waits is counted: runs may take its memory only where none is kept", () => {
  const [without, kept] = [sharesOf(config(false)), sharesOf(config(true))];
  expect([without.keepsTrainerReady, kept.keepsTrainerReady]).toEqual([false, true]);
  expect(without.trainingBytes - kept.trainingBytes).toBeCloseTo(0.5e9, -1);
  expect(without.inferenceBytes).toBe(kept.inferenceBytes);
  const { keepsTrainerReady, trainingBytes } = sharesOf(config("auto"));
  expect(trainingBytes).toBe(keepsTrainerReady ? kept.trainingBytes : without.trainingBytes);
  expect(keepsTrainerReady).toBe(without.trainingBytes / 0.8 >= 8e9 - 1);
});
