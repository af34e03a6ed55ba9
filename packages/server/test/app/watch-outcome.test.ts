/** Why a trainer is gone, and what its run does next: every way a process can end. */
import { describe, expect, it } from "vitest";
import { type Ending, endingAction } from "../../src/app/watch-outcome.js";
import { noFacts } from "../../src/app/watch-facts.js";
import { sampleRun } from "../store/samples.js";

const run = sampleRun({ status: "running", attempt: 1 });
const ending = (change: Partial<Ending> & { exitCode?: number; signal?: string }): Ending => ({
  facts: noFacts(),
  state: { alive: false, pid: null, exitCode: change.exitCode ?? null, signal: change.signal ?? null },
  stderr: change.stderr ?? "",
  stalled: change.stalled ?? null,
  at: 7,
});

describe("a trainer that ended without a word", () => {
  it.each([
    ["silent", { stalled: { phase: null, ms: 15_400 } }, "trainer_stalled", true, "gave no sign of life for 15 s"],
    [
      "stuck",
      { stalled: { phase: "training" as const, ms: 120_400 } },
      "trainer_stalled",
      true,
      "no progress for 120 s while",
    ],
    ["out of memory", { exitCode: 1, stderr: "x\nMemoryError: 3 GiB" }, "out_of_memory", false, "ran out of memory"],
    ["killed by the system", { signal: "SIGKILL" }, "training_failed", true, "because memory ran out"],
    ["killed, as a shell tells it", { exitCode: 137 }, "training_failed", true, "was killed (SIGKILL)"],
    ["crashed in native code", { signal: "SIGSEGV" }, "training_failed", true, "fault in native code"],
    ["refusing its spec", { exitCode: 2 }, "training_failed", false, "refused its specification"],
    ["without its Python", { exitCode: 127 }, "python_missing", false, "its Python was not found"],
    ["unseen", {}, "training_failed", true, "while no server was watching"],
    ["early but content", { exitCode: 0 }, "training_failed", true, "without a verified model"],
    ["with some other code", { exitCode: 3 }, "training_failed", true, "exit code 3"],
  ])("%s", (_, change, code, canRetry, words) => {
    const action = endingAction(run, ending(change));
    expect(action).toMatchObject({ type: "trainer_died", error: { code, param: null }, canRetry, at: 7 });
    expect(action.type === "trainer_died" && action.error.message).toContain(words);
  });

  it("with a disk so full that not even that fitted, pauses its run", () => {
    expect(endingAction(run, ending({ exitCode: 74 }))).toEqual({
      type: "trainer_stopped",
      reason: "disk_full",
      at: 7,
    });
  });

  it("its last words are told, the last eight lines of them", () => {
    const stderr = Array.from({ length: 12 }, (_, line) => `line ${line}`).join("\n");
    const action = endingAction(run, ending({ exitCode: 1, stderr }));
    expect(action.type === "trainer_died" && action.error.message).toMatch(/last words:\nline 4\n(.*\n)*line 11$/);
  });
});
