/** Reads what the test runners wrote and adds it up. */

/** Counts of vitest's JSON report; a file that failed before its first test counts as one failure. */
export function countVitest(json) {
  if (json === null) return { passed: 0, failed: 1, skipped: 0 };
  const report = JSON.parse(json);
  const broken = report.testResults.filter(
    (file) => file.status === "failed" && !file.assertionResults.some((one) => one.status === "failed"),
  );
  return {
    passed: report.numPassedTests,
    failed: report.numFailedTests + broken.length,
    skipped: report.numPendingTests + report.numTodoTests,
  };
}

/** Counts of pytest's JUnit report; errors while collecting or setting up are failures. */
export function countJunit(xml) {
  if (xml === null) return { passed: 0, failed: 1, skipped: 0 };
  const suite = /<testsuite [^>]*>/.exec(xml)?.[0] ?? "";
  const read = (name) => Number(new RegExp(`\\b${name}="(\\d+)"`).exec(suite)?.[1] ?? 0);
  const [failed, skipped] = [read("failures") + read("errors"), read("skipped")];
  return { passed: read("tests") - failed - skipped, failed, skipped };
}

/**
 * The last line and the verdict over all runners. Nothing run is a failure, and so is a runner that ended with
 * another code than 0 although it reported no failed test (5 is pytest's "no tests collected").
 */
export function summary(suites) {
  const add = (key) => suites.reduce((sum, suite) => sum + suite[key], 0);
  const crashed = suites.filter((suite) => suite.failed === 0 && ![0, 5].includes(suite.code)).length;
  const [passed, failed, skipped] = [add("passed"), add("failed") + crashed, add("skipped")];
  const line = `${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`;
  return { line, ok: failed === 0 && passed > 0 };
}
