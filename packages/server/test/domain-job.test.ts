import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { endedStatuses, maxAttempts, type Run, type RunAction, type RunStatus, transition } from "../src/domain/job.js";
import { hyperparameters } from "../../../tests/recovery/platform.js";
import { sampleRun } from "./store/samples.js";

const error = { code: "training_failed" as const, message: "it died", param: null };
const at = 5;
const actions: RunAction[] = [
  { type: "validated", task: "chat", method: "lora", hyperparameters, labels: null, estimate: null },
  { type: "refused", error, at },
  { type: "waits", reason: "the others" },
  { type: "started", at },
  { type: "progressed", step: 3, totalSteps: 10, etaAt: 9 },
  { type: "pause_requested" },
  { type: "cancel_requested", at },
  { type: "resume_requested" },
  { type: "trainer_stopped", reason: "signal", at },
  { type: "trainer_stopped", reason: "disk_full", at },
  { type: "trainer_died", error, canRetry: true, progressed: false, at },
  { type: "trainer_died", error, canRetry: true, progressed: true, at },
  { type: "trainer_died", error, canRetry: false, progressed: false, at },
  { type: "succeeded", fineTunedModel: "ft:x", resultFile: "file-1", trainedTokens: 7, trainSeconds: 5, at },
];

function after(run: Run, ...path: RunAction["type"][]): Run {
  return path.reduce((now, type) => {
    const action = actions.find((one) => one.type === type);
    const next = action === undefined ? null : transition(now, action);
    if (!next?.ok) throw new Error(`${type} was refused`);
    return next.run;
  }, run);
}

describe("transition", () => {
  it("goes the main way", () => {
    const run = after(
      sampleRun({ status: "validating_files" }),
      "validated",
      "waits",
      "started",
      "progressed",
      "succeeded",
    );
    expect(run).toMatchObject({
      status: "succeeded",
      attempt: 1,
      step: 3,
      totalSteps: 10,
      startedAt: 5,
      finishedAt: 5,
      fineTunedModel: "ft:x",
      waiting: null,
      wanted: null,
      etaAt: null,
    });
  });

  it("refuses with the state and what it allows", () => {
    const run = after(sampleRun({ id: "ftjob-1" }), "cancel_requested");
    expect(transition(run, { type: "pause_requested" })).toEqual({
      ok: false,
      reason: "Run ftjob-1 is cancelled: only a run that is queued or running can be paused.",
    });
    expect(transition(run, { type: "resume_requested" })).toEqual({
      ok: false,
      reason: "Run ftjob-1 is cancelled: only a run that is paused can be resumed.",
    });
  });

  it("lets cancel win over pause, whichever comes first, and over a death of the trainer", () => {
    const both = after(sampleRun(), "started", "pause_requested", "cancel_requested");
    expect(after(both, "trainer_stopped").status).toBe("cancelled");
    expect(after(both, "trainer_died").status).toBe("cancelled");
    expect(after(sampleRun(), "started", "cancel_requested", "pause_requested").wanted).toBe("cancel");
  });

  it("fails after so many deaths in a row without a checkpoint; a checkpoint or a pause between starts the count anew", () => {
    const die = (run: Run, progressed: boolean): Run => {
      const next = transition(after(run, "started"), { type: "trainer_died", error, canRetry: true, progressed, at });
      if (!next.ok) throw new Error(next.reason);
      return next.run;
    };
    let run = sampleRun();
    for (let n = 1; n < maxAttempts; n++) run = die(run, false);
    expect(run).toMatchObject({ status: "queued", deaths: maxAttempts - 1 });
    expect(die(run, false)).toMatchObject({ status: "failed", error });
    expect(die(run, true)).toMatchObject({ status: "queued", deaths: 1 });
    expect(after(run, "started", "pause_requested", "trainer_stopped").deaths).toBe(0);
  });

  it("pauses with the reason when the disk is full, even though nobody asked", () => {
    const run = transition(after(sampleRun(), "started"), { type: "trainer_stopped", reason: "disk_full", at });
    expect(run.ok && run.run).toMatchObject({ status: "paused", waiting: expect.stringContaining("The disk is full") });
  });
});

/** Whatever comes in whatever order: the properties that the rest of the program relies on. */
describe("any sequence of actions", () => {
  const allowed: Record<RunStatus, RunStatus[]> = {
    validating_files: ["queued", "failed", "cancelled"],
    queued: ["running", "paused", "failed", "cancelled"],
    running: ["queued", "paused", "succeeded", "failed", "cancelled"],
    paused: ["queued", "failed", "cancelled"],
    succeeded: [],
    failed: [],
    cancelled: [],
  };

  it("keeps to the drawn arrows, ends once, and never contradicts itself", () => {
    fc.assert(
      fc.property(fc.array(fc.constantFrom(...actions), { maxLength: 60 }), (sequence) => {
        let run = sampleRun({ status: "validating_files" });
        for (const action of sequence) {
          const before = structuredClone(run);
          const next = transition(run, action);
          expect(run).toEqual(before);
          if (!next.ok) {
            expect(next.reason).toContain(run.id);
            continue;
          }
          run = next.run;
          if (run.status !== before.status) expect(allowed[before.status]).toContain(run.status);
          else expect(endedStatuses).not.toContain(run.status);
          expect(run.attempt - before.attempt).toBe(action.type === "started" ? 1 : 0);
          expect(run.step).toBeGreaterThanOrEqual(before.step);
          if (run.status !== "running") expect([run.wanted, run.etaAt]).toEqual([null, null]);
          expect(run.finishedAt !== null).toBe(endedStatuses.includes(run.status));
          expect(run.fineTunedModel !== null).toBe(run.status === "succeeded");
          expect(run.error !== null).toBe(run.status === "failed");
          if (run.status === "paused") expect(run.waiting).toBeTruthy();
          if (run.status === "running") expect(run.hyperparameters).not.toBeNull();
        }
      }),
      { numRuns: 500 },
    );
  });

  it("ends for good when a cancel is asked for: at once, or when the trainer is gone", () => {
    fc.assert(
      fc.property(fc.array(fc.constantFrom(...actions), { maxLength: 30 }), (sequence) => {
        let run = sampleRun({ status: "validating_files" });
        for (const action of sequence) {
          const next = transition(run, action);
          if (next.ok) run = next.run;
        }
        const cancelled = transition(run, { type: "cancel_requested", at });
        if (!cancelled.ok) {
          expect(endedStatuses).toContain(run.status);
          return;
        }
        const gone =
          cancelled.run.status === "running"
            ? transition(cancelled.run, { type: "trainer_died", error, canRetry: true, progressed: false, at })
            : cancelled;
        expect(gone.ok && gone.run.status).toBe("cancelled");
      }),
    );
  });
});
