/**
 * `npm run docs`: writes the pages that are made from facts.
 *
 *   docs/errors.md  from the error catalogue, packages/contract/src/errors.ts
 *   docs/methods.md from the matrix of what works, packages/server/src/domain/compatibility.ts, teacher.ts and methods.ts
 *   README.md       the block between the demo markers, from docs/demo.json, a saved `npm run demo -- --json`
 *   docs/performance.md, docs/pictures/  tables and pictures, from docs/bench.json, saved `npm run bench -- NAME --json`
 *
 * `--demo FILE` first saves FILE, the stdout of such a run, as docs/demo.json; `--bench FILE` puts one of the benchmark's into docs/bench.json.
 * `--check` writes nothing and ends with 1 when a page is out of date.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { errorCatalogue, errorType } from "../packages/contract/src/errors.ts";
import { chooseWay, matrix } from "../packages/server/src/domain/compatibility.ts";
import { taughtTasks, teacherRefusal } from "../packages/server/src/domain/teacher.ts";
import { methodFacts } from "../packages/server/src/domain/methods.ts";
import { benchBlock, benchPictures, withBench } from "./docs-bench.mjs";
import { demoBlock, withoutMachine } from "./docs-demo.mjs";

const root = join(import.meta.dirname, "..");
const at = (path) => join(root, path);

/** The page of docs/errors.md. */
export function errorsPage() {
  const rows = Object.entries(errorCatalogue).map(([code, { status, retry, meaning, fix }]) =>
    [
      `## ${code}`,
      "",
      `HTTP ${status} · type \`${errorType(status)}\` · ${retry ? "trying again can help" : "trying again gives the same"}`,
      "",
      meaning,
      "",
      `**What to do:** ${fix}`,
      "",
    ].join("\n"),
  );
  const head = [
    "# Errors",
    "",
    'Every refusal Fettle can utter. On the wire it is OpenAI\'s shape: `{"error": {"message", "type", "param", "code"}}`;',
    "`code` is one of these, and `x-should-retry` says whether sending the request again can help.",
    "",
    "Made from `packages/contract/src/errors.ts` by `npm run docs`.",
    "",
  ];
  return `${[...head, ...rows].join("\n").trimEnd()}\n`;
}

const table = (head, rows) =>
  [head, head.map(() => "---"), ...rows].map((cells) => `| ${cells.join(" | ")} |`).join("\n");

/** The page of docs/methods.md. */
export function methodsPage() {
  const wanted = {
    model: "the model",
    family: "decoder",
    numParameters: 1e9,
    rows: "chat",
    task: null,
    method: null,
    tunedBy: null,
    tunedFor: null,
    fourBitsLack: null,
  };
  const refused = [
    { family: "seq2seq", rows: "pair", method: "head" },
    { method: "qlora", fourBitsLack: "PyTorch sees no GPU here" },
    { rows: "classification", method: "prompt" },
    { family: "encoder" },
    { method: "lora", tunedBy: "dora", tunedFor: "chat" },
  ].map((change) => `> ${chooseWay({ ...wanted, ...change }).refusal.message}`);
  return `${[
    "# Methods",
    "",
    "What of a model is trained: `fettle train FILE --model M --method lora`, or `method.supervised.method` of a job.",
    "Left out, it is chosen, and the run says why.",
    "",
    table(
      ["method", "trains", "leaves", "lora_r, lora_alpha, lora_dropout, target_modules"],
      Object.entries(methodFacts).map(([name, { trains, leaves, hasRank }]) => [
        `\`${name}\``,
        trains,
        leaves === "adapter" ? "an adapter in PEFT's format" : "a whole model",
        hasRank ? "used" : "not used",
      ]),
    ),
    "",
    "## What works",
    "",
    "The first method is the default; encoders and encoder-decoders below 500 million parameters are tuned whole. Teacher:",
    "whether a tuned model may [teach](#learning-from-a-teacher) it, by any of the methods.",
    "",
    table(
      ["model", "task", "rows", "methods", "teacher"],
      matrix.map(({ family, task, rows, methods }) => [
        family,
        task,
        rows.join(", or "),
        methods.map((name) => `\`${name}\``).join(" "),
        taughtTasks.includes(task) ? "yes" : "no",
      ]),
    ),
    "",
    "Anything else is refused when the job is made, with the reason and what works instead. For example:",
    "",
    refused.join("\n>\n"),
    "",
    "On CPUs, `lora` and `rslora` without `lora_dropout`, `full`, `freeze` and `head` run on the fused layers where there are",
    "any for the model. `dora`, `ia3`, `prompt`, `prefix`, and dropout inside an adapter, run on the model's own; the run's\nfirst log lines say which. `prompt` and `prefix` cannot be merged: they are served, and exported as they are.",
    "",
    ...teacherSection(),
    "",
    "Made from `packages/server/src/domain/compatibility.ts`, `teacher.ts` and `methods.ts` by `npm run docs`.",
  ].join("\n")}\n`;
}

/** Of docs/methods.md. */
function teacherSection() {
  const teaching = {
    teacher: "the teacher",
    tunedFor: "classification",
    knows: ["ham", "spam"],
    task: "classification",
    labels: ["ham", "spam"],
    candidates: [],
  };
  const teachers = [{ task: "chat" }, { tunedFor: null }, { labels: ["ham", "eggs"] }].map(
    (change) => `> ${teacherRefusal({ ...teaching, ...change }).message}`,
  );
  return [
    "## Learning from a teacher",
    "",
    "`fettle train FILE --model M --teacher ft:…`, or `method.supervised.teacher` of a job: a tuned model of the project, usually",
    "a larger one, answers each row to train on once, before the first step, and its answers are learnt beside the labels:",
    "`(1 - w) · labels + w · answers`, w being `distill_weight`. Of classes the answers count `T² · KL(teacher / T ‖ student / T)`",
    "(Hinton et al. 2015), T being `distill_temperature`; of several labels as much as the binary cross entropy with the",
    "teacher's probabilities at T, times T²; of numbers the squared distance. Families and tokenizers may differ. The run's",
    "log says how often the teacher agrees with the labels. Validation is by the labels alone, so runs with and without a",
    "teacher compare; give teacher and student the same `seed` where they learn from one file, so that neither has seen the",
    "rows held out. An attempt that goes on finds the answers kept, and is refused when the teacher has changed. A model is",
    "not deleted while a run, a sweep or a cross-validation that has not ended begins with it or learns from it.",
    "",
    teachers.join("\n>\n"),
  ];
}

/** `page` with `inside` between the two markers of that name. */
function between(page, name, inside) {
  const [open, close] = [`<!-- ${name}:begin -->`, `<!-- ${name}:end -->`];
  const [begin, end] = [page.indexOf(open), page.indexOf(close)];
  if (begin === -1 || end < begin) throw new Error(`a page has no ${open} ... ${close} block`);
  return `${page.slice(0, begin + open.length)}\n${inside === "" ? "" : `${inside}\n`}${page.slice(end)}`;
}

/** README.md with the saved demo between its markers; without a saved run nothing is shown. */
export const readmePage = (readme, demo) => between(readme, "demo", demo === null ? "" : demoBlock(demo));

const lastJson = (path) => JSON.parse(readFileSync(path, "utf8").trimEnd().split("\n").at(-1) ?? "");
const savedJson = (path) => (existsSync(at(path)) ? JSON.parse(readFileSync(at(path), "utf8")) : null);
const save = (path, value) => writeFileSync(at(path), `${JSON.stringify(value, null, 2)}\n`);

function saveDemo(path) {
  const machine = `${cpus().length} cores of ${cpus()[0]?.model.trim() ?? "an unknown processor"}`;
  save("docs/demo.json", { ...withoutMachine(lastJson(path)), machine });
}

const saveBench = (path) => save("docs/bench.json", withBench(savedJson("docs/bench.json") ?? {}, lastJson(path)));

async function pages() {
  const [demo, bench] = [savedJson("docs/demo.json"), savedJson("docs/bench.json")];
  const read = (path) => readFileSync(at(path), "utf8");
  const pictures = bench === null ? {} : await benchPictures(bench);
  return {
    "docs/errors.md": errorsPage(),
    "docs/methods.md": methodsPage(),
    "README.md": readmePage(read("README.md"), demo),
    "docs/performance.md": between(read("docs/performance.md"), "bench", bench === null ? "" : benchBlock(bench)),
    ...Object.fromEntries(Object.entries(pictures).map(([path, svg]) => [`docs/${path}`, `${svg}\n`])),
  };
}

async function main(argv) {
  for (const [flag, keep] of [
    ["--demo", saveDemo],
    ["--bench", saveBench],
  ]) {
    const given = argv.indexOf(flag);
    if (given !== -1) keep(argv[given + 1]);
  }
  mkdirSync(at("docs/pictures"), { recursive: true });
  let stale = 0;
  for (const [path, text] of Object.entries(await pages())) {
    if (existsSync(at(path)) && readFileSync(at(path), "utf8") === text) continue;
    stale += 1;
    if (argv.includes("--check")) console.log(`${path} is out of date: run \`npm run docs\` and commit it`);
    else writeFileSync(at(path), text);
  }
  return argv.includes("--check") && stale > 0 ? 1 : 0;
}

if (process.argv[1] === import.meta.filename) process.exitCode = await main(process.argv.slice(2));
