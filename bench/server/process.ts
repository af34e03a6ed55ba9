/** Starts the measured server in a folder of its own and watches its memory from outside. */
import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

export interface Measured {
  url: string;
  key: string;
  /** Milliseconds from the start of the process to its address. */
  readyMs: number;
  rssBytes(): number;
  /** Highest since the last `forgetPeak`. Linux alone knows it. */
  peakRssBytes(): number;
  forgetPeak(): void;
  close(): Promise<void>;
}

export async function startMeasured(): Promise<Measured> {
  const home = await mkdtemp(join(tmpdir(), "fettle-bench-"));
  await writeModel(join(home, "tiny"), 1000);
  // Too large for any memory: runs on it end in validation, so that a list of runs costs no trainer.
  await writeModel(join(home, "huge"), 1e15);
  const models = ["tiny", "huge"].map((name) => `  - { name: ${name}, path: ${join(home, name)} }`);
  await writeFile(join(home, "fettle.yaml"), `models:\n${models.join("\n")}\n`);
  const key = randomBytes(24).toString("hex");
  const started = performance.now();
  const script = join(import.meta.dirname, "child.ts");
  const child = spawn(process.execPath, ["--import", "tsx", script, home, key], { stdio: ["pipe", "pipe", "inherit"] });
  const url = await firstLine(child);
  const readyMs = performance.now() - started;
  return {
    url,
    key,
    readyMs,
    rssBytes: () => memory(child, "VmRSS"),
    peakRssBytes: () => memory(child, "VmHWM"),
    forgetPeak: () => writeFileSync(`/proc/${child.pid}/clear_refs`, "5"),
    close: async () => {
      child.stdin?.end();
      await once(child, "close");
      await rm(home, { recursive: true, force: true });
    },
  };
}

async function firstLine(child: ChildProcess): Promise<string> {
  let text = "";
  for await (const chunk of child.stdout ?? []) {
    text += String(chunk);
    const end = text.indexOf("\n");
    if (end >= 0) return text.slice(0, end);
  }
  throw new Error("The measured server ended before it was ready; its words are above.");
}

/** Kilobytes of /proc, as bytes. */
function memory(child: ChildProcess, field: string): number {
  const status = readFileSync(`/proc/${child.pid}/status`, "utf8");
  return Number(new RegExp(`^${field}:\\s+(\\d+) kB$`, "m").exec(status)?.[1] ?? Number.NaN) * 1024;
}

/** A folder the catalogue takes for a decoder of that size: only the header of the weights is ever read. */
async function writeModel(folder: string, numParameters: number): Promise<void> {
  await mkdir(folder);
  const config = {
    model_type: "llama",
    architectures: ["LlamaForCausalLM"],
    hidden_size: 64,
    num_hidden_layers: 2,
    num_attention_heads: 2,
    vocab_size: 256,
    max_position_embeddings: 4096,
  };
  await writeFile(join(folder, "config.json"), JSON.stringify(config));
  const header = Buffer.from(
    JSON.stringify({ weight: { dtype: "F32", shape: [numParameters], data_offsets: [0, 4] } }),
  );
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  await writeFile(join(folder, "model.safetensors"), Buffer.concat([length, header, Buffer.alloc(4)]));
}
