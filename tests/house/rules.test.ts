/** A rule exists when the check fails on it: each one is broken once, in a repository made for it. */
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";

const root = join(import.meta.dirname, "..", "..");
const made: string[] = [];
afterAll(() => {
  for (const folder of made) rmSync(folder, { recursive: true, force: true });
});

const sound = {
  "AGENTS.md": "# Map\n",
  "docs/decisions/0005-dependencies.md": "`zod`\n",
  "packages/contract/package.json": JSON.stringify({ dependencies: { zod: "4.6.7" } }),
  "packages/server/src/domain/verdict.ts": "export const better = (a: number, b: number): boolean => a > b;\n",
  // A kernel takes what it needs.
  "trainer/src/kernel.py": "@triton.jit\ndef add(a, b, out, size): ...\n",
};

function repository(files: Record<string, string>): string {
  const folder = mkdtempSync(join(tmpdir(), "fettle-house-"));
  made.push(folder);
  for (const [path, text] of Object.entries({ ...sound, ...files })) {
    mkdirSync(dirname(join(folder, path)), { recursive: true });
    writeFileSync(join(folder, path), text);
  }
  spawnSync("git", ["init", "-q", folder]);
  return folder;
}

function check(files: Record<string, string>): { code: number | null; lines: string[] } {
  const done = spawnSync(process.execPath, [join(root, "scripts/check-house.mjs"), repository(files)], {
    encoding: "utf8",
  });
  expect(done.stderr).toBe("");
  return { code: done.status, lines: done.stdout.split("\n").map((line) => line.trim()) };
}

const long = (lines: number, line: (index: number) => string): string =>
  Array.from({ length: lines }, (_, index) => line(index)).join("\n");
// Put together from halves, so that these files do not break the rules they test.
const words = { todo: `${"TO"}DO`, home: `/${"home"}/ann/data`, registry: `https://registry.${"npmjs"}.org/zod` };

/** What is broken, and the text that the check must say about it. */
const broken: [string, string, string, string][] = [
  [
    "a file of 401 lines of code",
    "packages/server/src/app/a.ts",
    long(401, (i) => `export const a${i} = ${i};`),
    "401 lines of code, at most 400",
  ],
  [
    "a function of 81 lines",
    "packages/server/src/app/a.ts",
    `export function a() {\n${long(79, (i) => `  void ${i};`)}\n}\n`,
    "a has 81 lines, at most 80",
  ],
  [
    "four parameters",
    "packages/server/src/app/a.ts",
    "export function a(b: 1, c: 1, d: 1, e: 1) {}\n",
    "a takes 4 parameters, at most 3",
  ],
  [
    "a Python function of 101 lines",
    "trainer/src/a.py",
    `def a() -> None:\n${long(100, (i) => `    print(${i})`)}\n`,
    "a has 101 lines, at most 100",
  ],
  [
    "four Python parameters",
    "trainer/src/a.py",
    "def a(b: int, c: int, d: int, e: int) -> None: ...\n",
    "a takes 4 parameters, at most 3",
  ],
  ["a file called utils", "packages/server/src/app/text-utils.ts", "export {};\n", '"text-utils.ts" names no idea'],
  ["a folder called common", "packages/server/src/common/a.ts", "export {};\n", '"common" names no idea'],
  ["eval", "packages/server/src/app/a.ts", 'eval("1");\n', "eval runs text as code"],
  ["new Function", "packages/server/src/app/a.ts", 'new Function("1");\n', "new Function is eval"],
  [
    "child_process.exec by name",
    "packages/server/src/app/a.ts",
    'import { exec } from "node:child_process";\n',
    "imports child_process.exec",
  ],
  [
    "child_process.exec by module",
    "packages/server/src/app/a.ts",
    'import * as cp from "child_process";\ncp.execSync("ls");\n',
    "child_process.exec: a shell",
  ],
  [
    "a shell option",
    "packages/server/src/app/a.ts",
    'spawn("ls", { shell: true });\n',
    "shell: lets a shell parse the text",
  ],
  ["pickle", "trainer/src/a.py", "import pickle\n", "unpickling runs code"],
  ["torch.load", "trainer/src/a.py", 'torch.load("a.pt")\n', "torch.load and torch.save pickle"],
  ["yaml.load", "trainer/src/a.py", "yaml.load(text)\n", "yaml.load makes objects"],
  ["shell=True", "trainer/src/a.py", "subprocess.run(text, shell=True)\n", "shell=True lets a shell"],
  ["Python's eval", "trainer/src/a.py", "eval(text)\n", "eval runs text as code"],
  ["trust_remote_code", "trainer/src/a.py", "load(name, trust_remote_code=True)\n", "trust_remote_code runs code"],
  [
    "process.env outside config.ts",
    "packages/server/src/app/a.ts",
    "export const a = process.env.HOME;\n",
    "reads process.env",
  ],
  [
    "a clock in domain",
    "packages/server/src/domain/a.ts",
    "export const a = () => Date.now();\n",
    "Date.now in a pure file",
  ],
  [
    "a Node module in domain",
    "packages/server/src/domain/a.ts",
    'import "node:fs";\n',
    "imports node:fs in a pure file",
  ],
  [
    "randomness in the contract",
    "packages/contract/src/a.ts",
    "export const a = Math.random();\n",
    "Math.random in a pure file",
  ],
  [
    "a status set by hand",
    "packages/server/src/app/a.ts",
    'export const a = (run: R) => ({ ...run, status: "failed" });\n',
    "changes a run's status",
  ],
  ["a module mock", "packages/server/test/a.test.ts", 'vi.mock("pg");\n', "vi.mock replaces a module"],
  [
    "a test that runs alone",
    "packages/server/test/a.test.ts",
    'it.only("a", () => {});\n',
    "it.only leaves the other tests out",
  ],
  ["a skipped test", "packages/server/test/a.test.ts", 'it.skip("a", () => {});\n', "use skipIf with a condition"],
  [
    "a sleep",
    "packages/server/test/a.test.ts",
    "await new Promise((done) => setTimeout(done, 50));\n",
    "sleeps: poll a condition",
  ],
  ["a sleep in Python", "trainer/tests/test_a.py", "import time\n\ntime.sleep(1)\n", "sleeps: poll a condition"],
  ["a promise", "packages/server/src/app/a.ts", `// ${words.todo} later\n`, "an unkept promise"],
  ["a blind ignore", "trainer/src/a.py", "a = b  # type: ignore\n", "an ignore without the rule"],
  ["a path of one machine", "docs/a.md", `${words.home}\n`, "a path of one machine"],
  ["a registry's address", "a.lock", `"${words.registry}"\n`, "the address of a package registry"],
  ["a version range", "packages/client/package.json", '{"dependencies": {"zod": "^4.6.7"}}', "pin one exact version"],
  [
    "a dependency without a reason",
    "packages/client/package.json",
    '{"dependencies": {"ms": "2.1.3"}}',
    "ms has no line in",
  ],
  ["a lock without a hash", "trainer/requirements.lock", "torch==2.13.0\n", "torch==2.13.0 is not locked by hash"],
  [
    "a map of places that are gone",
    "AGENTS.md",
    "`packages/gone/a.ts`\n",
    "names packages/gone/a.ts, which does not exist",
  ],
];

describe("npm run check, house rules", () => {
  it("passes a sound repository", () => {
    const { code, lines } = check({});
    expect(lines.filter((line) => line.startsWith("FAIL"))).toEqual([]);
    expect(code).toBe(0);
  });

  // One repository with all of it: file names are made distinct, so that each finding can be told from the others.
  const placed = broken.map(([title, path, text, message], index) => {
    const fixed = [
      "AGENTS.md",
      "packages/client/package.json",
      "trainer/requirements.lock",
      "packages/server/src/app/text-utils.ts",
    ].includes(path);
    return { title, path: fixed ? path : path.replace(/(a(?:\.test)?\.\w+)$/, `x${index}_$1`), text, message };
  });
  const files = new Map<string, string>();
  for (const { path, text } of placed) if (!files.has(path)) files.set(path, text);
  files.set("packages/client/package.json", '{"dependencies": {"zod": "^4.6.7", "ms": "2.1.3"}}');
  const { code, lines } = check(Object.fromEntries(files));

  it("ends with 1 when a rule is broken", () => expect(code).toBe(1));
  it.each(placed)("fails on $title", ({ path, message }) => {
    expect(lines.filter((line) => line.startsWith(`${path}:`)).join("\n")).toContain(message);
  });
});

describe("npm run check, arrows", () => {
  const cruise = (files: Record<string, string>): string => {
    const folder = repository(files);
    writeFileSync(
      join(folder, "tsconfig.json"),
      '{"compilerOptions": {"module": "NodeNext", "moduleResolution": "NodeNext"}}',
    );
    const command = join(root, "node_modules/dependency-cruiser/bin/dependency-cruise.mjs");
    const args = [command, "packages", "--config", join(root, ".dependency-cruiser.cjs"), "--output-type", "err"];
    return spawnSync(process.execPath, args, { cwd: folder, encoding: "utf8" }).stdout;
  };

  it("sees the modules of a sound repository", () =>
    expect(cruise({})).toMatch(/no dependency violations found \([1-9]/));

  it("fails on each arrow that points the wrong way", () => {
    const source = "packages/server/src";
    const out = cruise({
      [`${source}/domain/a.ts`]: 'import "../app/a.js";\n',
      [`${source}/app/a.ts`]: 'import "../store/a.js";\n',
      [`${source}/store/a.ts`]: 'import "../http/a.js";\n',
      [`${source}/http/a.ts`]: 'import "../http/b.js";\n',
      [`${source}/http/b.ts`]: 'import "../http/a.js";\n',
      "packages/client/src/a.ts": 'import "../../server/src/domain/verdict.js";\n',
      "packages/contract/src/a.ts": 'import "../../server/src/domain/verdict.js";\n',
    });
    for (const rule of [
      "domain-is-pure",
      "app-knows-ports-not-adapters",
      "store-knows-no-other-adapter",
      "no-cycles",
      "client-knows-contract-alone",
      "contract-knows-nobody",
    ])
      expect(out).toContain(rule);
  });
});
