import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { fairOrder, reasonToWait, waitingText } from "../../packages/server/src/app/dispatcher-queue.js";
import type { Run } from "../../packages/server/src/domain/job.js";
import { sampleRun } from "../../packages/server/test/store/samples.js";

const of = (projectId: string, n: number): Run[] =>
  Array.from({ length: n }, (_, index) => sampleRun({ id: `${projectId}${index}`, projectId }));
const names = (runs: Run[]): string => runs.map((run) => run.id).join(" ");

describe("order of the queue", () => {
  it("lets a project with one run through between the hundred of another", () => {
    expect(names(fairOrder([...of("a", 4), ...of("b", 1)], [], new Map()))).toBe("a0 b0 a1 a2 a3");
    expect(names(fairOrder([...of("a", 3), ...of("b", 2)], of("a", 1), new Map()))).toBe("b0 a0 b1 a1 a2");
    expect(names(fairOrder([...of("a", 2), ...of("b", 1)], [], new Map([["a", 7]])))).toBe("b0 a0 a1");
  });

  it("keeps every run once and the order within a project", () => {
    fc.assert(
      fc.property(
        fc.array(fc.constantFrom("a", "b", "c"), { maxLength: 40 }),
        fc.array(fc.constantFrom("a", "b"), { maxLength: 5 }),
        (queue, work) => {
          const queued = queue.map((projectId, n) => sampleRun({ id: String(n), projectId }));
          const order = fairOrder(
            queued,
            work.map((projectId) => sampleRun({ projectId })),
            new Map(),
          );
          expect(order.map((run) => Number(run.id)).sort((x, y) => x - y)).toEqual(queued.map((_, n) => n));
          for (const projectId of ["a", "b", "c"]) {
            const own = order.filter((run) => run.projectId === projectId).map((run) => Number(run.id));
            expect(own).toEqual([...own].sort((x, y) => x - y));
          }
        },
      ),
    );
  });
});

describe("reason to wait", () => {
  const needing = (gb: number): Run => sampleRun({ estimate: { seconds: [1, 2], memoryBytes: gb * 1e9, tokens: 1 } });

  it("starts anything when nothing runs, and what fits beside what runs", () => {
    const capacity = { maxConcurrent: null, memoryBytes: 8e9 };
    expect(reasonToWait(needing(100), [], capacity)).toBeNull();
    expect(reasonToWait(needing(3), [needing(5)], capacity)).toBeNull();
    expect(reasonToWait(needing(3.2), [needing(5)], capacity)).toBe(
      "it needs about 3.2 GB of memory, and 3.0 GB of the 8.0 GB for training are free while 1 run is at work",
    );
    expect(reasonToWait(needing(1), [needing(1), needing(1)], { maxConcurrent: 2, memoryBytes: 8e9 })).toBe(
      "2 runs are at work, and at most 2 may be at once",
    );
    expect(waitingText(3, "x")).toBe("Position 3 in the queue: x.");
    expect(waitingText(101, "x")).toBe("More than 100 runs are before this one in the queue: x.");
  });

  it("goes by what a trainer that has read its rows expects to hold", () => {
    const parts = { process: 1e9, weights: 1e9, gradients: 0, moments: 0, activations: 0, logits: 0, products: 0 };
    const told = { ...needing(6), memory: { predicted: parts, peakBytes: null } };
    const capacity = { maxConcurrent: null, memoryBytes: 8e9 };
    expect(reasonToWait(needing(5), [needing(6)], capacity)).toContain("2.0 GB of the 8.0 GB");
    expect(reasonToWait(needing(5), [told], capacity)).toBeNull();
    expect(reasonToWait(told, [needing(5)], capacity)).toBeNull();
  });
});
