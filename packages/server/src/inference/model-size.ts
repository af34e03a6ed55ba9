/** Memory that a model process will take, by the headers of the model's weight files. */
import { closeSync, openSync, readdirSync, readFileSync, readSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { maxHeaderBytes, type TensorEntry, tensorsOf } from "../app/safetensors.js";

/** Python with torch and transformers loaded, before any weight. */
export const emptyProcessBytes = 450 * 1024 * 1024;
/** Models are served in fp32. */
const float = 4;
const configSchema = z.object({ architectures: z.array(z.string()).nullish(), vocab_size: z.number().nullish() });

/**
 * The empty process, all weights, and a copy of the embedding where an output head shares its weight: the head is kept
 * in a layout of its own. A folder that cannot be read says so when it loads.
 */
export function expectedBytes(basePath: string): number {
  try {
    const files = readdirSync(basePath).filter((name) => name.endsWith(".safetensors"));
    const tensors = files.flatMap((name) => tensorsIn(join(basePath, name)));
    const numbers = tensors.reduce((sum, { size }) => sum + size, 0);
    return emptyProcessBytes + (numbers + sharedHead(basePath, tensors)) * float;
  } catch {
    return emptyProcessBytes;
  }
}

function sharedHead(basePath: string, tensors: TensorEntry[]): number {
  const config = configSchema.parse(JSON.parse(readFileSync(join(basePath, "config.json"), "utf8")));
  const writes = config.architectures?.some((name) => /For(CausalLM|ConditionalGeneration)$|LMHeadModel$/.test(name));
  if (!writes || tensors.some(({ name }) => name.endsWith("lm_head.weight"))) return 0;
  const embeddings = tensors.filter(({ shape }) => shape[0] === config.vocab_size);
  return Math.max(0, ...embeddings.map(({ size }) => size));
}

function tensorsIn(path: string): TensorEntry[] {
  const file = openSync(path, "r");
  try {
    const length = Number(read(file, 0, 8).readBigUInt64LE());
    if (length > maxHeaderBytes) throw new Error(`${path} has a header of ${length} bytes`);
    return tensorsOf(read(file, 8, length).toString("utf8"));
  } finally {
    closeSync(file);
  }
}

function read(file: number, from: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  if (readSync(file, bytes, 0, length, from) < length) throw new Error("the weight file ends early");
  return bytes;
}
