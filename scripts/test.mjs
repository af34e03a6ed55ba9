/**
 * `npm test`: the default suite, TypeScript and Python. The last line is `N passed, N failed[, N skipped]`.
 *
 *   node scripts/test.mjs                   everything, after setting up what is missing
 *   node scripts/test.mjs store dispatcher  only test files whose path holds one of the words
 *   node scripts/test.mjs --real-postgres   the same database tests on a real server: the one of
 *                                           FETTLE_TEST_DATABASE_URL, else one started from PostgreSQL's own programs
 *   node scripts/test.mjs --proofs          the trainer's slow proofs, which print what they measured: kills, ranks,
 *                                           memory, 4 bits; also by words: `--proofs soak`
 *   node scripts/test.mjs --exports         exported models asked by llama.cpp and in a browser, and every kind of graph;
 *                                           prints what was measured
 *   node scripts/test.mjs --no-setup        with the node_modules and .venv that are there
 */
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join, relative } from "node:path";
import { report, setUp } from "./setup.mjs";
import { setUpExports } from "./setup-exports.mjs";
import { countJunit, countVitest, summary } from "./test-results.mjs";
import { startRealPostgres } from "./test-postgres.mjs";

const root = join(import.meta.dirname, "..");
const python = join(root, ".venv", "bin", "python");
/** Each loads PyTorch and makes models of its own: 1 to 2 GB. */
const mostWorkers = 4;
const databaseTests = ["packages/server/test/store", "tests/recovery"];

/** Ends with the code of the child. Its output is shown as it comes. */
function run({ command, args, cwd, env }) {
  return new Promise((done, fail) => {
    const child = spawn(command, args, {
      cwd,
      env: { ...process.env, ...env },
      stdio: ["ignore", "inherit", "inherit"],
    });
    child.on("error", fail);
    child.on("close", (code) => done(code ?? 1));
  });
}

async function runVitest({ folder, filters, env, config }) {
  const results = join(folder, "vitest.json");
  const args = [
    join(root, "node_modules/vitest/vitest.mjs"),
    "run",
    "--reporter=default",
    "--reporter=json",
    `--outputFile.json=${results}`,
    ...(config === undefined ? [] : ["--config", config]),
  ];
  const code = await run({
    command: process.execPath,
    args: [...args, "--passWithNoTests", ...filters],
    cwd: root,
    env,
  });
  return { ...countVitest(existsSync(results) ? readFileSync(results, "utf8") : null), code };
}

/** Paths of test files that hold one of `filters`; null is all of them. */
function pythonFiles(filters) {
  if (filters.length === 0) return null;
  const folder = join(root, "trainer", "tests");
  const files = readdirSync(folder, { recursive: true }).filter((name) => /(^|\/)test_[^/]*\.py$/.test(name));
  return files
    .map((name) => join(folder, name))
    .filter((path) => filters.some((word) => relative(root, path).includes(word)));
}

async function runPytest({ folder, filters, marked }) {
  const files = pythonFiles(filters);
  if (files?.length === 0) return { passed: 0, failed: 0, skipped: 0, code: 0 };
  const results = join(folder, "pytest.xml");
  const args = ["-m", "pytest", "-q", "-p", "no:cacheprovider", `--junitxml=${results}`, ...(files ?? [])];
  if (marked !== undefined) args.push("-m", marked, "-s");
  else if (files === null)
    args.push("--numprocesses", String(Math.min(availableParallelism(), mostWorkers)), "--dist", "loadfile");
  const env = {
    OMP_NUM_THREADS: "1",
    MKL_NUM_THREADS: "1",
    HF_HUB_OFFLINE: "1",
    TOKENIZERS_PARALLELISM: "false",
    PYTHONDONTWRITEBYTECODE: "1",
  };
  const code = await run({ command: python, args, cwd: join(root, "trainer"), env });
  return { ...countJunit(existsSync(results) ? readFileSync(results, "utf8") : null), code };
}

async function runSuites({ filters, realPostgres, proofs, exported, folder }) {
  if (proofs) return [await runPytest({ folder, filters, marked: "slow" })];
  if (exported) {
    await setUpExports({ root });
    const config = join(root, "tests", "exports", "vitest.config.ts");
    const readers = await runVitest({ folder, filters: [], env: { OMP_NUM_THREADS: "1" }, config });
    return [readers, await runPytest({ folder, filters: ["test_export"], marked: "exports" })];
  }
  const postgres = realPostgres ? await startRealPostgres() : null;
  try {
    const env = { OMP_NUM_THREADS: "1", ...(postgres ? { FETTLE_TEST_DATABASE_URL: postgres.url } : {}) };
    const wanted = realPostgres && filters.length === 0 ? databaseTests : filters;
    const typescript = await runVitest({ folder, filters: wanted, env });
    return realPostgres ? [typescript] : [typescript, await runPytest({ folder, filters })];
  } finally {
    await postgres?.stop();
  }
}

async function main(argv) {
  const flags = argv.filter((word) => word.startsWith("--"));
  const unknown = flags.find((flag) => !["--no-setup", "--real-postgres", "--proofs", "--exports"].includes(flag));
  if (unknown !== undefined) {
    console.error(
      `error: ${unknown} is no option; there are --no-setup, --real-postgres, --proofs and --exports, and words to filter by.`,
    );
    return 2;
  }
  const filters = argv.filter((word) => !word.startsWith("--"));
  const proves = flags.includes("--proofs");
  if (!flags.includes("--no-setup")) await setUp({ profile: "test", qlora: proves, liger: proves });
  const folder = mkdtempSync(join(tmpdir(), "fettle-results-"));
  try {
    const realPostgres = flags.includes("--real-postgres");
    const [proofs, exported] = [flags.includes("--proofs"), flags.includes("--exports")];
    const suites = await runSuites({ filters, realPostgres, proofs, exported, folder });
    const { line, ok } = summary(suites);
    console.log(line);
    return ok ? 0 : 1;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

process.exitCode = await main(process.argv.slice(2)).catch((error) => report(error, false));
