/**
 * From a fresh clone to the first tuned answer: clones this repository's last commit into an empty folder, with an
 * empty data folder, and runs `npm run demo -- --json` there.
 *
 *   npm run bench -- demo [--json] [--only encoder|decoder|seq2seq] [--all] [--keep]
 *
 * Downloads already in npm's and pip's own caches stay there: the times of a first ever run depend on the network.
 */
import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";

interface Finished {
  seconds: number;
  stdout: string;
}

/** stdout is kept, stderr is shown. Throws when the command fails. */
function run(command: string, args: string[], place: { cwd: string; home: string }): Promise<Finished> {
  const start = performance.now();
  return new Promise((done, fail) => {
    const env = { ...process.env, FETTLE_HOME: place.home, FETTLE_PORT: "0" };
    const child = spawn(command, args, { cwd: place.cwd, env, stdio: ["ignore", "pipe", "inherit"] });
    let stdout = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
    });
    child.on("error", fail);
    child.on("close", (code) => {
      const seconds = (performance.now() - start) / 1000;
      if (code === 0) done({ seconds, stdout });
      else
        fail(
          new Error(
            `${command} ${args.join(" ")} ended with exit code ${code} after ${seconds.toFixed(0)} s:\n${stdout.slice(-2000)}`,
          ),
        );
    });
  });
}

/** The demo's own document: its last line. */
function lastDocument(stdout: string): unknown {
  const line = stdout.trimEnd().split("\n").at(-1) ?? "";
  return JSON.parse(line) as unknown;
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      json: { type: "boolean", default: false },
      only: { type: "string" },
      all: { type: "boolean", default: false },
      keep: { type: "boolean", default: false },
    },
  });
  const folder = await mkdtemp(join(tmpdir(), "fettle-fresh-"));
  const place = { cwd: folder, home: join(folder, "home") };
  const clone = join(folder, "clone");
  try {
    const cloned = await run("git", ["clone", "--quiet", "--depth", "1", `file://${process.cwd()}`, clone], place);
    const setUp = await run("node", ["scripts/setup.mjs", "--json"], { ...place, cwd: clone });
    const flags = [...(values.only === undefined ? [] : [`--only=${values.only}`]), ...(values.all ? ["--all"] : [])];
    const demo = await run("npm", ["run", "--silent", "demo", "--", "--json", ...flags], { ...place, cwd: clone });
    const seconds = { clone: cloned.seconds, set_up: setUp.seconds, demo: demo.seconds };
    const total = cloned.seconds + setUp.seconds + demo.seconds;
    const result = { bench: "demo", fresh_clone_to_answers_s: total, seconds, demo: lastDocument(demo.stdout) };
    if (values.json) console.log(JSON.stringify(result));
    else console.log(JSON.stringify(result, null, 2));
  } finally {
    if (values.keep) console.error(`kept ${folder}`);
    else await rm(folder, { recursive: true, force: true });
  }
}

await main();
