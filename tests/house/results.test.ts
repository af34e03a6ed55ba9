/** The last line of `npm test` must not be able to hide a failure. */
import { describe, expect, it } from "vitest";

interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}
interface Results {
  countVitest(json: string | null): Counts;
  countJunit(xml: string | null): Counts;
  summary(suites: (Counts & { code: number })[]): { line: string; ok: boolean };
}
const path = new URL("../../scripts/test-results.mjs", import.meta.url).href;
const { countVitest, countJunit, summary } = (await import(path)) as Results;

const file = (status: string, statuses: string[]): unknown => ({
  status,
  assertionResults: statuses.map((one) => ({ status: one })),
});
const vitest = (counts: Record<string, number>, testResults: unknown[]): string =>
  JSON.stringify({ numPassedTests: 0, numFailedTests: 0, numPendingTests: 0, numTodoTests: 0, ...counts, testResults });

describe("counting", () => {
  it("takes vitest's own numbers", () => {
    const json = vitest({ numPassedTests: 3, numFailedTests: 1, numPendingTests: 2 }, [
      file("failed", ["passed", "failed"]),
    ]);
    expect(countVitest(json)).toEqual({ passed: 3, failed: 1, skipped: 2 });
  });

  it("counts a file that fails before its first test", () => {
    expect(countVitest(vitest({ numPassedTests: 3 }, [file("failed", []), file("passed", ["passed"])]))).toMatchObject({
      failed: 1,
    });
  });

  it("counts pytest's errors while collecting as failures", () => {
    const xml =
      '<testsuites><testsuite name="pytest" errors="1" failures="2" skipped="3" tests="10" time="1"></testsuite></testsuites>';
    expect(countJunit(xml)).toEqual({ passed: 4, failed: 3, skipped: 3 });
  });

  it("takes a runner that left no report for a failure", () => {
    expect(countVitest(null)).toMatchObject({ failed: 1 });
    expect(countJunit(null)).toMatchObject({ failed: 1 });
  });
});

describe("the last line", () => {
  it("adds the runners up and names skipped tests only when there are any", () => {
    expect(
      summary([
        { passed: 2, failed: 0, skipped: 0, code: 0 },
        { passed: 3, failed: 0, skipped: 0, code: 0 },
      ]),
    ).toEqual({ line: "5 passed, 0 failed", ok: true });
    expect(summary([{ passed: 2, failed: 1, skipped: 4, code: 1 }])).toEqual({
      line: "2 passed, 1 failed, 4 skipped",
      ok: false,
    });
  });

  it("is a failure when a runner crashed without a failed test", () => {
    expect(summary([{ passed: 2, failed: 0, skipped: 0, code: 137 }])).toEqual({
      line: "2 passed, 1 failed",
      ok: false,
    });
  });

  it("is a failure when nothing ran", () => {
    expect(summary([{ passed: 0, failed: 0, skipped: 0, code: 5 }]).ok).toBe(false);
  });
});
