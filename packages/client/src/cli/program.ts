/** The commands and their options. What they do is in the files beside this one. */
import { exportFormatSchema, exportQuantizeSchema } from "@fettle/contract";
import { Command, Option } from "commander";
import { chat, classify, predict } from "./chat.js";
import { type Add, adder, number, type Run, withExamples, withRunOptions, withValidation } from "./command.js";
import { dataImport, dataList, dataShow } from "./data.js";
import { doctor } from "./doctor.js";
import { exitCodes, exitHelp } from "./exit.js";
import { type Asked, exportToFolder } from "./export.js";
import type { DemoOptions, Local } from "./local.js";
import { keysCreate, keysList, keysRevoke, models } from "./models.js";
import { logs, ps, resume, stop } from "./runs.js";
import { searchCommands } from "./search-commands.js";
import { train, type TrainOptions } from "./train.js";

/** The same below `models` and by itself. */
function exportCommand(parent: Command, called: string, add: Add): void {
  add(
    parent,
    {
      name: "export <model>",
      summary: "Save a tuned model or a checkpoint as a folder that other tools load.",
      examples: [
        `${called} ft:… --out my-adapter            an adapter, in PEFT's format`,
        `${called} ft:… --merged --out my-model     adapter and base as one model`,
        `${called} ft:… --format gguf --quantize q8_0 --out my-gguf     for llama.cpp and Ollama`,
        `${called} ft:… --format onnx --quantize int8 --out my-onnx     for onnxruntime and browsers`,
      ],
    },
    (context, [model = ""], options) => exportToFolder(context, model, options as unknown as Asked),
  )
    .requiredOption("-o, --out <folder>", "an empty folder, or one that is not there yet")
    .option("--merged", "fold an adapter into its base model")
    .addOption(new Option("--format <format>", "written anew and compared").choices(exportFormatSchema.options))
    .addOption(
      new Option("--quantize <type>", "gguf: f16, q8_0, q4_0; onnx: int8").choices(exportQuantizeSchema.options),
    )
    .option("--prune <share>", "make this share of the smallest weights zero, such as 0.3", number);
}

export function buildProgram(io: Run): Command {
  const program = new Command("fettle")
    .description("Fine-tune and serve models on your own machine.")
    .version(io.local.version, "-V, --version");
  withExamples(program, [
    "fettle up                                        start the server",
    "fettle train tickets.jsonl --model smollm2-135m-instruct",
    "fettle ps",
    'fettle chat ft:smollm2-135m-instruct:… "Hello"',
    "fettle doctor                                    what is missing on this machine",
  ]);
  program.addHelpText(
    "after",
    `\nThe server is found through FETTLE_HOME (default ~/.fettle), or FETTLE_URL with FETTLE_API_KEY.${exitHelp}`,
  );
  const add = adder(io);
  serverCommands(program, add, io.local);
  runCommands(program, add);
  searchCommands(program, add);
  dataCommands(program, add);
  modelCommands(program, add);
  return program;
}

function serverCommands(program: Command, add: Add, local: Local): void {
  add(
    program,
    {
      name: "up",
      summary: "Start the server: API, queue, database.",
      examples: ["fettle up", "FETTLE_HOME=/data/fettle fettle up --port 8080"],
    },
    (context, _, options) =>
      local.up({ json: context.json, ...(typeof options["port"] === "number" && { port: options["port"] }) }),
  ).option("-p, --port <port>", "port to listen on (else FETTLE_PORT, fettle.yaml, 4141)", number);

  add(
    program,
    {
      name: "demo",
      summary: "Tune real models on real data, here, without a model hub, and serve them.",
      examples: ["fettle demo", "fettle demo --only=encoder", "fettle demo --all --json"],
    },
    async (context, _, { only, all }) => {
      const code = await local.demo({
        only: (only ?? null) as DemoOptions["only"],
        all: all === true,
        json: context.json,
        signal: context.signal,
      });
      return context.signal.aborted ? exitCodes.interrupted : code;
    },
  )
    .addOption(new Option("--only <part>", "one part alone").choices(["encoder", "decoder", "seq2seq"]))
    .addOption(new Option("--all", "the encoder-decoder part too").conflicts("only"));

  add(
    program,
    {
      name: "doctor",
      summary: "Name what this machine lacks, and the command that mends it.",
      examples: ["fettle doctor", "fettle doctor --json"],
    },
    (context) => doctor(context, local),
  );

  add(
    program,
    { name: "version", summary: "Versions of Fettle and Node.", examples: ["fettle version", "fettle version --json"] },
    async (context) => {
      context.result(
        { version: local.version, node: process.versions.node },
        `fettle ${local.version} (Node ${process.versions.node})`,
      );
      return exitCodes.ok;
    },
  );

  add(
    program,
    {
      name: "status",
      summary: "The running server: queue, loaded models, disk, memory.",
      examples: ["fettle status --json"],
    },
    async (context) => {
      const status = await context.client.status();
      const { runs } = status;
      context.result(
        status,
        `Fettle ${status.version} at ${context.client.baseUrl}: database ${status.database}; runs: ${runs.running} running, ${runs.queued} queued, ${runs.paused} paused; ${status.models.length} models loaded`,
      );
      return exitCodes.ok;
    },
  );
}

function runCommands(program: Command, add: Add): void {
  const examples = [
    "fettle train tickets.jsonl --model smollm2-135m-instruct",
    "fettle train mails.csv --model minilm --task classification --epochs 2",
    "fettle train mails.csv --model minilm --teacher ft:…   learn from a larger model's answers too",
    "fettle train file-abc --model minilm --method lora --set lora_alpha=32 --detach --json",
  ];
  const training = add(
    program,
    {
      name: "train <file>",
      summary: "Upload a file (or use a data id), start a run, follow it to its end. Ctrl-C detaches.",
      examples,
    },
    (context, [file = ""], options) => train(context, file, options as unknown as TrainOptions),
  );
  withValidation(withRunOptions(training));

  add(
    program,
    { name: "ps", summary: "Runs, newest first.", examples: ["fettle ps", "fettle ps -a --json"] },
    (context, _, { all }) => ps(context, { all: all === true }),
  ).option("-a, --all", "all runs, not the last 20 only");

  add(
    program,
    {
      name: "logs <run>",
      summary: "Events of a run.",
      examples: [
        "fettle logs ftjob-abc",
        "fettle logs -f ftjob-abc",
        "fettle logs -f --json ftjob-abc    one event a line, the run as the last",
      ],
    },
    (context, [run = ""], { follow }) => logs(context, { run, follow: follow === true }),
  ).option("-f, --follow", "go on until the run has ended");

  add(
    program,
    {
      name: "stop <run>",
      summary: "Pause a run at its next step, with a checkpoint; or cancel it.",
      examples: ["fettle stop ftjob-abc", "fettle stop ftjob-abc --cancel"],
    },
    (context, [run = ""], { cancel }) => stop(context, { run, cancel: cancel === true }),
  ).option("--cancel", "end it for good");

  add(
    program,
    {
      name: "resume <run>",
      summary: "Let a paused run go on from its last checkpoint.",
      examples: ["fettle resume ftjob-abc"],
    },
    (context, [run = ""]) => resume(context, { run }),
  );
}

function dataCommands(program: Command, add: Add): void {
  const data = withExamples(program.command("data").description("Data files and what reading them found."), [
    "fettle data import tickets.jsonl",
    "fettle data ls",
    "fettle data show file-abc",
  ]);
  add(
    data,
    {
      name: "import <file>",
      summary: "Upload a JSONL or CSV file and check it.",
      examples: ["fettle data import tickets.jsonl", "fettle data import mails.csv --json"],
    },
    (context, [file = ""]) => dataImport(context, { file }),
  );
  add(data, { name: "ls", summary: "Data files.", examples: ["fettle data ls"] }, (context) => dataList(context));
  add(
    data,
    { name: "show <id>", summary: "One data file with its faults.", examples: ["fettle data show file-abc"] },
    (context, [id = ""]) => dataShow(context, { id }),
  );
}

function modelCommands(program: Command, add: Add): void {
  const list = add(
    program,
    {
      name: "models",
      summary: "Base models and your tuned ones.",
      examples: ["fettle models", "fettle models --json", "fettle models export ft:… --merged --out my-model"],
    },
    (context) => models(context),
  );
  exportCommand(list, "fettle models export", add);
  exportCommand(program, "fettle export", add);

  add(
    program,
    {
      name: "chat <model> [prompt]",
      summary: "Ask a model; without a prompt, a conversation.",
      examples: ['fettle chat smollm2-135m-instruct "Say hello"', "fettle chat ft:… < message.txt", "fettle chat ft:…"],
    },
    (context, [model = "", prompt], options) => chat(context, { model, prompt }, options),
  )
    .option("-s, --system <text>", "system message")
    .option("-t, --temperature <x>", "0 to 2", number)
    .option("--max-tokens <n>", "longest answer, in tokens", number)
    .option("--seed <n>", "seed of the sampling", number);

  add(
    program,
    {
      name: "classify <model> [texts...]",
      summary: "Labels with probabilities; texts as arguments, or piped in, one a line.",
      examples: ['fettle classify ft:… "Win a prize now"', "fettle classify ft:… --json < texts.txt"],
    },
    (context, [model = "", ...texts]) => classify(context, { model, texts }),
  );
  add(
    program,
    {
      name: "predict <model> [texts...]",
      summary: "Numbers, entities or answers; texts as arguments, or piped in, one a line.",
      examples: [
        'fettle predict ft:… "The parcel never came"',
        'fettle predict ft:… --question "When did it open?" < article.txt',
        "fettle predict ft:… --json < texts.txt",
      ],
    },
    (context, [model = "", ...texts], options) => predict(context, { model, texts }, options),
  )
    .option("-q, --question <text>", "of a model that finds answers; a piped text is one context")
    .option("-p, --prompt <text>", "a model that ranks: what each text is an answer to");

  const keys = withExamples(program.command("keys").description("API keys of the project (needs an admin key)."), [
    "fettle keys ls",
    "fettle keys create laptop --days 90",
    "fettle keys revoke key-abc",
  ]);
  add(keys, { name: "ls", summary: "Keys, without their secrets.", examples: ["fettle keys ls"] }, (context) =>
    keysList(context),
  );
  add(
    keys,
    {
      name: "create <name>",
      summary: "Make a key; it is shown this once.",
      examples: ["fettle keys create laptop", "fettle keys create ci --days 30 --json"],
    },
    (context, [name = ""], { admin, days }) =>
      keysCreate(context, { name, admin: admin === true, ...(typeof days === "number" && { days }) }),
  )
    .option("--admin", "may also make and revoke keys")
    .option("--days <n>", "days until it expires (default: never)", number);
  add(
    keys,
    {
      name: "revoke <id>",
      summary: "Revoke a key, from the next request on.",
      examples: ["fettle keys revoke key-abc"],
    },
    (context, [id = ""]) => keysRevoke(context, { id }),
  );
}
