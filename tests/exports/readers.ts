/** Readers of exported models that are not ours, from the packages of .cache/exports; and the models they are asked. */
import { execFile } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";

const root = join(import.meta.dirname, "..", "..");
const modules = join(root, ".cache", "exports", "node_modules");
const installed = (...path: string[]): Promise<unknown> => import(pathToFileURL(join(modules, ...path)).href);

// ---------------------------------------------------------------- what is asked

/** An input's rows; all are whole numbers. */
export type Feeds = Record<string, number[][]>;

export interface Exported {
  folder: string;
  report: {
    quantize: string | null;
    after: { agreement: number; max_abs_change: number };
    speed: { gain: number } | null;
  };
}

interface Graphs {
  onnx: Exported[];
  cases: { feeds: Feeds; logits: number[] }[];
}

/** As trainer/tests/exported.py writes it. */
export interface Models {
  text: Graphs & {
    prompts: { ids: number[]; text: string }[];
    answers: string[];
    max_tokens: number;
    stop_id: number;
    gguf: Exported[];
  };
  classes: Graphs;
  pairs: Graphs;
}

/** Trains and exports into `folder`: a minute or two. */
export async function makeModels(folder: string): Promise<Models> {
  const python = join(root, ".venv", "bin", "python");
  const tests = join(root, "trainer", "tests");
  const env = { ...process.env, PYTHONPATH: join(root, "trainer", "src"), HF_HUB_OFFLINE: "1" };
  await promisify(execFile)(python, [join(tests, "exported.py"), folder], { env, maxBuffer: 2 ** 26 });
  return JSON.parse(readFileSync(join(folder, "models.json"), "utf8")) as Models;
}

// ---------------------------------------------------------------- llama.cpp

interface LlamaModel {
  tokenize(text: string, specialTokens: boolean): number[];
  detokenize(tokens: number[]): string;
  createContext(options: object): Promise<{ getSequence(): LlamaSequence; dispose(): Promise<void> }>;
  dispose(): Promise<void>;
}
interface LlamaSequence {
  evaluate(tokens: number[], options: { temperature: number }): AsyncIterable<number>;
  clearHistory(): Promise<void>;
}

/** `tokens`: what llama.cpp makes of the prompt's text; `answer`: what it writes after the prompt, greedily. */
export interface Written {
  tokens: number[];
  answer: string;
}

export async function askLlama(path: string, { prompts, max_tokens }: Models["text"]): Promise<Written[]> {
  const { getLlama } = (await installed("node-llama-cpp", "dist", "index.js")) as {
    getLlama(options: object): Promise<{ loadModel(options: object): Promise<LlamaModel>; dispose(): Promise<void> }>;
  };
  const llama = await getLlama({ build: "never", gpu: false, maxThreads: 1 });
  const model = await llama.loadModel({ modelPath: path });
  const context = await model.createContext({ contextSize: 256 });
  const sequence = context.getSequence();
  const written: Written[] = [];
  for (const { ids, text } of prompts) {
    const answer: number[] = [];
    for await (const token of sequence.evaluate(ids, { temperature: 0 })) {
      answer.push(token);
      if (answer.length === max_tokens) break;
    }
    await sequence.clearHistory();
    written.push({ tokens: model.tokenize(text, true), answer: model.detokenize(answer) });
  }
  await context.dispose();
  await model.dispose();
  await llama.dispose();
  return written;
}

// ---------------------------------------------------------------- a browser

interface Page {
  goto(url: string): Promise<unknown>;
  evaluate(expression: string): Promise<unknown>;
}
interface Browser {
  version(): string;
  newPage(): Promise<Page>;
  close(): Promise<void>;
}

export interface InBrowser {
  version: string;
  /** The largest difference of any output's number to `expected`. */
  run(folder: string, feeds: Feeds): Promise<number[]>;
  close(): Promise<void>;
}

const programs = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

/** Null: there is no Chromium. `models`: the folder below which models lie. */
export async function openBrowser(models: string): Promise<InBrowser | null> {
  const executablePath = programs.find((path) => existsSync(path));
  if (executablePath === undefined) return null;
  const { chromium } = (await installed("playwright-core", "index.mjs")) as {
    chromium: { launch(options: object): Promise<Browser> };
  };
  const server = createServer((request, response) => {
    const path = decodeURIComponent(request.url ?? "/");
    const file = path.startsWith("/ort/")
      ? join(modules, "onnxruntime-web", "dist", path.slice(5))
      : join(models, path);
    const type = path.endsWith("js") ? "text/javascript" : path.endsWith("wasm") ? "application/wasm" : undefined;
    if (path === "/") response.writeHead(200, { "content-type": "text/html" }).end(html);
    else if (!existsSync(file)) response.writeHead(404).end();
    else response.writeHead(200, { "content-type": type ?? "application/octet-stream" }).end(readFileSync(file));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  const page = await browser.newPage();
  await page.goto(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`);
  return {
    version: browser.version(),
    run: async (folder, feeds) => {
      const [path, given] = [JSON.stringify(folder.slice(models.length)), JSON.stringify(feeds)];
      return (await page.evaluate(`ask(${path}, ${given})`)) as number[];
    },
    close: async () => {
      await browser.close();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** `ask`: logits of the graph, or of both graphs of an encoder-decoder, in one row. */
const html = `<!doctype html><script src="/ort/ort.wasm.min.js"></script><script>
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = "/ort/";
const sessions = new Map();
const session = async (path) => {
  if (!sessions.has(path)) sessions.set(path, await ort.InferenceSession.create(path, { executionProviders: ["wasm"] }));
  return sessions.get(path);
};
const whole = (rows) =>
  new ort.Tensor("int64", BigInt64Array.from(rows.flat().map(BigInt)), [rows.length, rows[0].length]);
async function ask(folder, feeds) {
  const { decoder_input_ids, ...rest } = feeds;
  const inputs = Object.fromEntries(Object.entries(rest).map(([name, rows]) => [name, whole(rows)]));
  if (decoder_input_ids === undefined)
    return Array.from((await (await session(folder + "/model.onnx")).run(inputs)).logits.data);
  const read = await (await session(folder + "/encoder_model.onnx")).run(inputs);
  const found = await (await session(folder + "/decoder_model.onnx")).run({
    input_ids: whole(decoder_input_ids),
    encoder_hidden_states: read.last_hidden_state,
    encoder_attention_mask: inputs.attention_mask,
  });
  return Array.from(found.logits.data);
}
</script>`;
