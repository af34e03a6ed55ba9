/**
 * `npm run check`: every rule of the house, one line each, ends with 1 when one is broken.
 *
 *   node scripts/check.mjs              all rules, after setting up what is missing
 *   node scripts/check.mjs --no-setup   with the node_modules and .venv that are there
 *   node scripts/check.mjs types arrows only these
 *   node scripts/check.mjs --write      first let Biome and ruff format, and mend what they can
 */
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { report, setUp } from "./setup.mjs";

const root = join(import.meta.dirname, "..");
const node = process.execPath;
const bin = (name) => join(root, ".venv", "bin", name);

/** Entry file of a package's command, so that no shell and no npx stands between. */
function tool(name, command = name) {
  const folder = join(root, "node_modules", name);
  const declared = JSON.parse(readFileSync(join(folder, "package.json"), "utf8")).bin;
  return [node, join(folder, typeof declared === "string" ? declared : declared[command])];
}

/** dependency-cruiser ends with 0 when it understood nothing: a count of modules is part of passing. */
function modulesSeen({ code, output }) {
  const count = Number(/\((\d+) modules/.exec(output)?.[1] ?? 0);
  if (count === 0) return { code: 1, output: `${output}\ndependency-cruiser looked at no module` };
  return { code, output, note: `${count} modules` };
}

/** Longest first: with two cores the short ones fill the gap at the end. */
const rules = {
  "python-types": {
    say: "Python types, pyright strict",
    command: () => [bin("pyright"), "-p", "trainer", "--pythonpath", bin("python")],
  },
  types: {
    say: "TypeScript types, strict",
    command: () => [
      ...tool("typescript", "tsc"),
      "--pretty",
      "false",
      "--incremental",
      "--tsBuildInfoFile",
      ".cache/types",
    ],
  },
  house: { say: "house rules", command: () => [node, "scripts/check-house.mjs"], always: true },
  dead: { say: "no dead code, no unused dependency (knip)", command: () => [...tool("knip"), "--no-progress"] },
  arrows: {
    say: "imports go one way, no cycles (dependency-cruiser)",
    command: () => [
      ...tool("dependency-cruiser", "depcruise"),
      "packages",
      "tests",
      "bench",
      "examples",
      "--output-type",
      "err-long",
    ],
    judge: modulesSeen,
  },
  docs: {
    say: "generated docs are up to date",
    command: () => [node, "--import", "tsx", "scripts/docs.mjs", "--check"],
  },
  lint: {
    say: "format and lint (Biome)",
    command: () => [...tool("@biomejs/biome", "biome"), "check", "--error-on-warnings", "--max-diagnostics=200"],
  },
  "python-lint": {
    say: "Python lint (ruff)",
    command: () => [bin("ruff"), "check", ...pythonRoots],
  },
  "python-format": {
    say: "Python format (ruff)",
    command: () => [bin("ruff"), "format", "--check", ...pythonRoots],
  },
};
const pythonRoots = ["trainer", "scripts", "bench", "examples"];

function run([command, ...args]) {
  return new Promise((done) => {
    const child = spawn(command, args, {
      cwd: root,
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, NO_COLOR: "1", FORCE_COLOR: "0" },
    });
    let output = "";
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding("utf8").on("data", (text) => (output += text));
    child.on("error", (error) =>
      done({ code: 127, output: `${command} could not start: ${error.message}. Run without --no-setup.` }),
    );
    child.on("close", (code) => done({ code: code ?? 1, output }));
  });
}

async function runRule(name) {
  const { say, command, judge = (result) => result, always = false } = rules[name];
  const start = Date.now();
  const { code, output, note } = judge(await run(command()));
  const seconds = ((Date.now() - start) / 1000).toFixed(1);
  console.log(`${code === 0 ? "ok  " : "FAIL"} ${say}${note ? `, ${note}` : ""} (${seconds} s)`);
  const text = output.replace(/^npm warn .*\n?/gm, "").trimEnd();
  if ((code !== 0 || always) && text !== "") console.log(text.replace(/^/gm, "     "));
  return code === 0;
}

async function runAll(names) {
  const waiting = [...names];
  const results = [];
  const worker = async () => {
    for (let name = waiting.shift(); name !== undefined; name = waiting.shift()) results.push(await runRule(name));
  };
  await Promise.all(Array.from({ length: Math.min(4, availableParallelism()) }, worker));
  return results;
}

async function main(argv) {
  const unknown = argv.filter((word) => !["--no-setup", "--write"].includes(word) && !(word in rules));
  if (unknown.length > 0) {
    console.error(
      `error: ${unknown[0]} is no rule; there are ${Object.keys(rules).join(", ")}, --no-setup and --write.`,
    );
    return 2;
  }
  if (!argv.includes("--no-setup")) await setUp({ profile: "test" });
  if (argv.includes("--write")) {
    await run([...tool("@biomejs/biome", "biome"), "check", "--write"]);
    await run([bin("ruff"), "check", "--fix", "--quiet", ...pythonRoots]);
    await run([bin("ruff"), "format", "--quiet", ...pythonRoots]);
  }
  const asked = argv.filter((word) => word in rules);
  const results = await runAll(asked.length > 0 ? asked : Object.keys(rules));
  const broken = results.filter((ok) => !ok).length;
  console.log(`${results.length - broken} rules kept, ${broken} broken`);
  return broken === 0 ? 0 : 1;
}

process.exitCode = await main(process.argv.slice(2)).catch((error) => report(error, false));
