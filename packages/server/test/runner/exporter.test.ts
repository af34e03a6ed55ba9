/** The child processes that write models: scripted here, so that each of their ends can be had. */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { Exporter } from "../../src/app/ports.js";
import { localExporter } from "../../src/runner/exporter.js";
import { eventually } from "../store/samples.js";

let folder: string;
let exporter: Exporter;
const logged: object[] = [];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "fettle-exporter-"));
  logged.length = 0;
});
afterEach(async () => {
  await exporter.close();
  rmSync(folder, { recursive: true });
});

/** `script` sees its arguments as `args` and the test's folder as `folder`. */
function open(script: string, program = process.execPath): Exporter {
  const path = join(folder, "child.cjs");
  const frame = `const fs = require("node:fs"); const folder = ${JSON.stringify(folder)}; const args = process.argv.slice(2);`;
  writeFileSync(path, `${frame}\n${script}\n`);
  const note = (fields: object, message: string): void => void logged.push({ ...fields, message });
  exporter = localExporter({
    command: [program, path],
    environment: { PATH: process.env["PATH"], OPENAI_API_KEY: "secret" },
    extraEnvironment: { PYTHONPATH: "/trainer" },
    numThreads: 3,
    log: { info: note, warn: note, error: note },
  });
  return exporter;
}
const checkpoint = (step = 5) => ({
  runFolder: "/runs/a",
  step,
  basePath: "/base",
  adapterPath: null,
  out: join(folder, `out-${step}`),
});
const merge = (signal = new AbortController().signal) =>
  exporter.merge({ basePath: "/base", adapterPath: "/adapter", out: join(folder, "merged") }, signal);
const told = (): string[][] =>
  readFileSync(join(folder, "told"), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as string[]);
const tell = `fs.appendFileSync(folder + "/told", JSON.stringify(args) + "\\n");`;

test("an export is asked with all that was given, and what it is at is heard line by line", async () => {
  open(`${tell} process.stdout.write('{"doing":"pru'); setTimeout(() => {
    process.stdout.write('ning"}\\n{"doing":"writing gguf"}\\n{"report":{}}\\n'); }, 20);`);
  const heard: string[] = [];
  const input = { sourcePath: "/a", basePath: "/b", runFolder: "/r", name: "ft:x", out: "/o" } as const;
  await exporter.write(
    { ...input, format: "gguf", quantize: "q8_0", prune: 0.3 },
    { signal: new AbortController().signal, doing: (what) => void heard.push(what) },
  );
  expect(heard).toEqual(["pruning", "writing gguf"]);
  const asked = ["--source", "/a", "--base", "/b", "--run", "/r", "--name=ft:x", "--format", "gguf"];
  const rest = ["--quantize", "q8_0", "--prune", "0.3", "--out", "/o", "--json", "--end-with-stdin"];
  expect(told()).toEqual([["export", ...asked, ...rest]]);
});

test("callers of one folder share a process; another folder has its own, after the first", async () => {
  open(`
    if (fs.existsSync(folder + "/busy")) process.exit(9);
    fs.writeFileSync(folder + "/busy", ""); ${tell}
    setTimeout(() => { fs.rmSync(folder + "/busy"); process.exit(0); }, 50);`);
  await Promise.all([
    exporter.checkpoint(checkpoint()),
    exporter.checkpoint(checkpoint()),
    exporter.checkpoint(checkpoint(6)),
  ]);
  const out = (step: number) => [
    "--run",
    "/runs/a",
    "--step",
    String(step),
    "--base",
    "/base",
    "--out",
    join(folder, `out-${step}`),
  ];
  const end = ["--json", "--end-with-stdin"];
  expect(told()).toEqual([
    ["checkpoint", ...out(5), ...end],
    ["checkpoint", ...out(6), ...end],
  ]);
  await exporter.checkpoint({ ...checkpoint(), adapterPath: "/adapter" });
  expect(told()[2]).toEqual(expect.arrayContaining(["--adapter", "/adapter"]));
});

test("no secret of the server reaches the process", async () => {
  open(`fs.writeFileSync(folder + "/env", JSON.stringify(process.env)); process.exit(0);`);
  await merge();
  const env = JSON.parse(readFileSync(join(folder, "env"), "utf8"));
  expect(env).toMatchObject({ OMP_NUM_THREADS: "3", HF_HUB_OFFLINE: "1", PYTHONPATH: "/trainer" });
  expect(env).not.toHaveProperty("OPENAI_API_KEY");
});

test.each([
  [
    "what it says of its failure",
    `console.log("noise"); console.log(JSON.stringify({ failed: { code: "model_unavailable", message: "Step 5 is gone." } })); process.exit(1);`,
    { code: "model_unavailable", message: "Step 5 is gone." },
  ],
  ["an end without a word", `console.error("Traceback"); process.exit(1);`, { code: "inference_failed" }],
  [
    "a code that is none",
    `console.log(JSON.stringify({ failed: { code: "rm -rf", message: "x" } })); process.exit(1);`,
    { code: "inference_failed" },
  ],
  ["being killed from outside", `process.kill(process.pid, "SIGKILL");`, { code: "out_of_memory" }],
])("%s becomes an error, and the next one is not held up", async (_, script, error) => {
  open(script);
  await expect(exporter.checkpoint(checkpoint())).rejects.toMatchObject(error);
  await expect(merge()).rejects.toMatchObject(error);
});

test("a program that is not there is named", async () => {
  open("", join(folder, "no-python"));
  await expect(merge()).rejects.toMatchObject({ code: "python_missing" });
});

function isGone(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return false;
  } catch {
    return true;
  }
}

test("an aborted merge ends its process; one that waits for its turn never starts", async () => {
  open(`${tell} fs.writeFileSync(folder + "/pid", String(process.pid)); setInterval(() => 0, 1000);`);
  const [first, second] = [new AbortController(), new AbortController()];
  const merges = [merge(first.signal), merge(second.signal)].map((one) => one.catch((error: unknown) => error));
  const pid = await eventually(
    "the process",
    () => existsSync(join(folder, "pid")) && Number(readFileSync(join(folder, "pid"), "utf8")),
  );
  second.abort();
  first.abort();
  expect(await Promise.all(merges)).toMatchObject([{ code: "inference_failed" }, { code: "inference_failed" }]);
  // A killed grandchild is there until init has taken note of its end.
  await eventually("its end", () => isGone(pid));
  expect(told()).toHaveLength(1);
});

test("closing ends what is being written", async () => {
  open(`${tell} setInterval(() => 0, 1000);`);
  const written = exporter.checkpoint(checkpoint()).catch((error: unknown) => error);
  await eventually("the process", () => existsSync(join(folder, "told")));
  await exporter.close();
  expect(await written).toMatchObject({ code: "inference_failed" });
});
