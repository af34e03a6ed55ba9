import { mkdirSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { exitCodes } from "../../packages/client/src/cli/exit.js";
import { Fettle } from "../../packages/client/src/index.js";
import { tunedRun } from "../../packages/server/test/http/tuned.js";
import { type ClientServer, startClientServer } from "../clients/server.js";
import { type Captured, captured } from "./captured.js";

let server: ClientServer;
let cli: Captured;
let client: Fettle;
let file: string;
const base = "smollm2-135m-instruct";

beforeAll(async () => {
  server = await startClientServer();
  const url = server.baseURL.replace(/\/v1$/, "");
  cli = captured({ FETTLE_URL: url, FETTLE_API_KEY: server.apiKey });
  client = new Fettle({ baseUrl: url, apiKey: server.apiKey });
  file = join(cli.home, "tickets.jsonl");
  writeFileSync(
    file,
    '{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"hello"}]}\n'.repeat(12),
  );
});
afterAll(async () => {
  cli.close();
  await server.close();
});

describe("help", () => {
  const commands = [
    "up",
    "demo",
    "doctor",
    "train",
    "ps",
    "logs",
    "stop",
    "resume",
    "models",
    "models export",
    "data",
    "data import",
    "data ls",
    "data show",
    "chat",
    "classify",
    "predict",
    "keys",
    "keys ls",
    "keys create",
    "keys revoke",
    "version",
    "status",
  ];
  it.each(["", ...commands])("of `fettle %s` begins with examples", async (command) => {
    const said = await cli.run([...command.split(" ").filter(Boolean), "--help"]);
    expect(said).toMatchObject({ code: 0, stderr: "" });
    expect(said.stdout).toMatch(/^Examples:\n {2}fettle /);
    if (command !== "" && command !== "data" && command !== "keys") expect(said.stdout).toContain("--json");
  });

  it("documents every exit code", async () => {
    const { stdout } = await cli.run(["--help"]);
    for (const code of Object.values(exitCodes)) expect(stdout).toMatch(new RegExp(`\\b${code} `));
  });
});

describe("failures", () => {
  it("wrong usage is 2 and names the nearest command", async () => {
    expect(await cli.run(["trian", "x"])).toMatchObject({
      code: 2,
      stdout: "",
      stderr: expect.stringContaining("Did you mean train?"),
    });
    const said = await cli.run(["train", "x.jsonl", "--json"]);
    expect(said.code).toBe(2);
    expect(cli.document(said)).toEqual({
      error: { code: "usage", message: "required option '-m, --model <name>' not specified" },
    });
  });

  it("a hyperparameter that is none is refused before anything is uploaded", async () => {
    const said = await cli.run(["train", file, "-m", base, "--set", "lerning_rate=1", "--json"]);
    expect(said.code).toBe(2);
    expect(said.stderr).toContain("--set lerning_rate: no such hyperparameter; expected one of num_train_epochs,");
    const word = await cli.run(["train", file, "-m", base, "--learning-rate", "fast"]);
    expect(word).toMatchObject({ code: 2, stderr: 'error (usage): learning_rate is "fast": expected a number.\n' });
    const weights = await cli.run(["train", file, "-m", base, "--set", "class_weights=fair"]);
    expect(weights.stderr).toBe('error (usage): class_weights is "fair": expected none, balanced.\n');
  });

  it("a missing file is 3", async () => {
    const said = await cli.run(["data", "import", "/no/such.jsonl"]);
    expect(said).toMatchObject({ code: 3, stdout: "" });
    expect(said.stderr).toContain("No file at /no/such.jsonl.");
  });

  it("an unknown run is 3, with the server's words", async () => {
    const said = await cli.run(["logs", "ftjob-nothing", "--json"]);
    expect(said.code).toBe(3);
    expect(cli.document(said)).toMatchObject({
      error: { code: "not_found", status: 404, request_id: expect.stringMatching(/^req_/) },
    });
  });

  it("a wrong key is 4", async () => {
    const said = await cli.run(["ps", "--json"], {
      env: { FETTLE_HOME: cli.home, FETTLE_URL: client.baseUrl, FETTLE_API_KEY: "wrong" },
    });
    expect(said.code).toBe(4);
    expect(cli.document(said)).toMatchObject({ error: { code: "invalid_api_key" } });
  });

  it("no key at all is 4, and a key of this home never goes to another machine", async () => {
    const home = join(cli.home, "keyed");
    mkdirSync(home);
    const none = await cli.run(["ps"], { env: { FETTLE_HOME: home, FETTLE_URL: client.baseUrl } });
    expect(none).toMatchObject({
      code: 4,
      stderr: expect.stringContaining("Start the server once (`fettle up`), or set FETTLE_API_KEY."),
    });
    writeFileSync(join(home, "admin_key"), `${server.apiKey}\n`);
    expect(await cli.run(["ps"], { env: { FETTLE_HOME: home, FETTLE_URL: client.baseUrl } })).toMatchObject({
      code: 0,
    });
    const foreign = await cli.run(["ps"], { env: { FETTLE_HOME: home, FETTLE_URL: "http://fettle.example.org" } });
    expect(foreign).toMatchObject({
      code: 4,
      stderr: expect.stringContaining("No API key for http://fettle.example.org: FETTLE_API_KEY is not set."),
    });
  });

  it("a server that is away is 5", async () => {
    const probe = createServer();
    const port = await new Promise<number>((resolve) =>
      probe.listen(0, "127.0.0.1", () => resolve((probe.address() as { port: number }).port)),
    );
    await new Promise((resolve) => probe.close(resolve));
    const said = await cli.run(["ps", "--json"], {
      env: { FETTLE_HOME: cli.home, FETTLE_PORT: String(port), FETTLE_API_KEY: "x" },
    });
    expect(said.code).toBe(5);
    expect(cli.document(said)).toMatchObject({
      error: {
        code: "unreachable",
        message: `No answer from http://127.0.0.1:${port}: nothing listens there (connection refused). Check that the server runs (\`fettle up\`) and the address is right.`,
      },
    });
  });

  it("a state that does not allow it is 6", async () => {
    const run = (await cli.run(["train", file, "--model", base, "--detach"])).stdout.trim();
    await cli.run(["stop", run, "--cancel"]);
    const said = await cli.run(["resume", run, "--json"]);
    expect(said.code).toBe(6);
    expect(cli.document(said)).toMatchObject({ error: { code: "conflict" } });
  });
});

describe("data", () => {
  it("imports, lists and shows", async () => {
    const imported = await cli.run(["data", "import", file, "--json"]);
    expect(imported.code).toBe(0);
    const data = cli.document(imported) as { id: string };
    expect(data).toMatchObject({ object: "data", filename: "tickets.jsonl", status: "processed" });
    expect(cli.document(await cli.run(["data", "show", data.id, "--json"]))).toEqual(data);
    const listed = await cli.run(["data", "ls"]);
    expect(listed.stdout).toMatch(/^DATA +STATUS +SIZE/);
    expect(listed.stdout).toContain(data.id);
  });

  it("a file with faults cannot be trained on: line, words and fix are told", async () => {
    const data = cli.document(await cli.run(["data", "import", file, "--json"])) as { id: string };
    const faults = [{ line: 3, column: 7, rule: "json_syntax", message: "The quote is missing.", fix: "Add it." }];
    const report = {
      format: "jsonl" as const,
      kind: null,
      numRows: 12,
      numUsable: 11,
      numFaults: 1,
      faults,
      notices: ["CRLF was read as LF."],
      labels: null,
      rowsSha256: null,
    };
    await server.world.deps.store.files.setProcessed("default", data.id, {
      status: "error",
      // As the server writes it: the faults follow, and must not be told twice.
      statusDetails: "1 of 12 rows cannot be used.\nLine 3, column 7: The quote is missing. Add it.",
      report,
    });
    const said = await cli.run(["train", data.id, "--model", base]);
    expect(said).toMatchObject({ code: 1, stdout: "" });
    expect(said.stderr).toBe(
      "error (invalid_training_file): 1 of 12 rows cannot be used.\n  line 3, column 7: The quote is missing. Add it.\n",
    );
    expect((await cli.run(["data", "show", data.id])).stdout).toContain(
      "fault line 3, column 7: The quote is missing. Add it.",
    );
  });
});

describe("models", () => {
  it("are listed", async () => {
    expect((await cli.run(["models"])).stdout).toMatch(/^MODEL +KIND +FAMILY[^\n]*\n/);
    const { data } = cli.document(await cli.run(["models", "--json"])) as { data: { name: string }[] };
    expect(data.map((model) => model.name)).toContain(base);
  });

  it("answer: as a stream, as one document, from stdin", async () => {
    expect(await cli.run(["chat", base, "Say hello"])).toMatchObject({
      code: 0,
      stdout: "Hello there friend\n",
      stderr: "",
    });
    expect(cli.document(await cli.run(["chat", base, "Say hello", "--json"]))).toMatchObject({
      object: "chat.completion",
      choices: [{ message: { content: "Hello there friend" } }],
    });
    await cli.run(["chat", base, "--system", "Be brief.", "--temperature", "0", "--seed", "7"], {
      stdinText: "From a pipe\n",
    });
    expect(server.world.inference.requests.at(-1)?.request).toMatchObject({
      temperature: 0,
      seed: 7,
      prompt: {
        messages: [
          { role: "system", content: "Be brief." },
          { role: "user", content: "From a pipe" },
        ],
      },
    });
  });

  it("control characters of an answer do not reach the terminal", async () => {
    server.world.inference.answer = "a\u001b[2Jb";
    const said = await cli.run(["chat", base, "x"]);
    server.world.inference.answer = "Hello there friend";
    expect(said.stdout).toBe("a\ufffd[2Jb\n");
  });

  it("an unknown one is 3 and names the nearest", async () => {
    const said = await cli.run(["chat", "smollm2-135m-instuct", "x"]);
    expect(said).toMatchObject({ code: 3, stdout: "" });
    expect(said.stderr).toContain(base);
  });

  it("classify wants a text", async () => {
    expect(await cli.run(["classify", base])).toMatchObject({
      code: 2,
      stderr: "error (usage): No text to classify: give texts as arguments, or pipe them in, one a line.\n",
    });
  });
});

describe("predict", () => {
  it("prints what was found, with its place; a question is asked of a whole text from a pipe", async () => {
    const { inference } = server.world;
    const finder = { baseModel: "minilm", family: "encoder", task: "question_answering", method: "lora" } as const;
    const { model } = await tunedRun(server.world, finder);
    inference.prediction = { answer: { start: 0, end: 5, text: "Paris", score: 3.5 } };
    const said = await cli.run(["predict", model, "--question", "Where?"], { stdinText: "Paris is\na town.\n" });
    expect(said).toMatchObject({ code: 0, stderr: "" });
    expect(said.stdout).toBe("SCORE   CHARACTERS  ANSWER  TEXT\n3.5000  0-5         Paris   Paris is a town.\n");
    expect(inference.asked.at(-1)).toEqual([{ text: "Where?", second: "Paris is\na town." }]);
    inference.prediction = { answer: null };
    const none = await cli.run(["predict", model, "--question", "Who?", "Paris"]);
    expect(none.stdout.split("\n")[1]).toBe("-      -           -       Paris");
    const tagger = await tunedRun(server.world, { ...finder, task: "token_classification" });
    inference.prediction = { entities: [{ start: 0, end: 5, text: "Par\u001bs", label: "city", probability: 0.9 }] };
    const found = await cli.run(["predict", tagger.model, "Paris"]);
    expect(found.stdout.split("\n")[1]).toBe("city   0.9000       0-5         Par\ufffds   Paris");
    inference.prediction = { score: 2.5 };
    const ranker = await tunedRun(server.world, { ...finder, task: "ranking" });
    const ranked = await cli.run(["predict", ranker.model, "--prompt", "Hello", "Hi", "--json"]);
    expect(cli.document(ranked)).toMatchObject({ data: [{ index: 0, prediction: { score: 2.5 } }] });
    expect(inference.asked.at(-1)).toEqual([{ text: "Hello", second: "Hi" }]);
  });

  it("wants a text, and one kind of input", async () => {
    expect(await cli.run(["predict", base])).toMatchObject({ code: 2 });
    expect((await cli.run(["predict", base, "x", "-q", "a", "-p", "b"])).stderr).toContain("give one of them");
  });
});

describe("keys", () => {
  it("are made, work, and are revoked", async () => {
    const made = cli.document(await cli.run(["keys", "create", "laptop", "--days", "3", "--json"])) as {
      id: string;
      key: string;
    };
    const env = { FETTLE_HOME: cli.home, FETTLE_URL: client.baseUrl, FETTLE_API_KEY: made.key };
    expect(await cli.run(["ps"], { env })).toMatchObject({ code: 0 });
    expect(await cli.run(["keys", "ls"], { env })).toMatchObject({
      code: 4,
      stderr: expect.stringContaining("permission_denied"),
    });
    expect((await cli.run(["keys", "ls"])).stdout).toMatch(new RegExp(`${made.id} +laptop +member`));
    expect(await cli.run(["keys", "revoke", made.id])).toMatchObject({ code: 0 });
    expect(await cli.run(["ps"], { env })).toMatchObject({ code: 4 });
  });
});

describe("this machine", () => {
  it("the server is found through server.json and admin_key of FETTLE_HOME", async () => {
    const home = join(cli.home, "found");
    mkdirSync(home);
    writeFileSync(join(home, "server.json"), JSON.stringify({ url: client.baseUrl, pid: process.pid, owner: "x" }));
    writeFileSync(join(home, "admin_key"), `${server.apiKey}\n`);
    const said = await cli.run(["status", "--json"], { env: { FETTLE_HOME: home } });
    expect(cli.document(said)).toMatchObject({ version: "0.1.0", database: "ok" });
  });

  it("doctor names what is missing and how to mend it", async () => {
    const bare = captured({});
    bare.local.pythonPackagesReady = () => false;
    bare.local.findPython = () => {
      throw new Error("No Python was found: looked everywhere.");
    };
    const taken = createServer();
    const port = await new Promise<number>((resolve) =>
      taken.listen(0, "127.0.0.1", () => resolve((taken.address() as { port: number }).port)),
    );
    const said = await bare.run(["doctor", "--json"], {
      env: {
        FETTLE_HOME: bare.home,
        FETTLE_PORT: String(port),
        FETTLE_URL: "http://127.0.0.1:9",
        DATABASE_URL: `postgres://u:p@127.0.0.1:9/x`,
      },
    });
    await new Promise((resolve) => taken.close(resolve));
    bare.close();
    expect(said.code).toBe(1);
    const { ok, checks } = cli.document(said) as {
      ok: boolean;
      checks: { name: string; state: string; fix: string | null }[];
    };
    expect(ok).toBe(false);
    const missing = checks.filter((check) => check.state === "missing");
    expect(missing.map((check) => check.name)).toEqual(["Python", "Python packages", "PostgreSQL", "port"]);
    expect(missing.map((check) => check.fix)).toEqual([
      "No Python was found: looked everywhere.",
      "`node scripts/setup.mjs`",
      "Start that PostgreSQL, or unset DATABASE_URL for the embedded one.",
      `Set FETTLE_PORT to a free one: \`FETTLE_PORT=${port + 1} npm start\`.`,
    ]);
  });
});

describe("demo", () => {
  it("gets its flags as they were given, and its exit code goes on", async () => {
    const asked: unknown[] = [];
    cli.local.demo = async ({ only, all, json }) => {
      asked.push({ only, all, json });
      return 1;
    };
    expect(await cli.run(["demo"])).toMatchObject({ code: 1 });
    await cli.run(["demo", "--only=encoder", "--json"]);
    await cli.run(["demo", "--all"]);
    expect(asked).toEqual([
      { only: null, all: false, json: false },
      { only: "encoder", all: false, json: true },
      { only: null, all: true, json: false },
    ]);
    expect(await cli.run(["demo", "--only=vision"])).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("Allowed choices are encoder, decoder, seq2seq."),
    });
  });
});
