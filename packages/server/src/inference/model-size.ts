/** Memory that a model process will take, by the headers of the model's weight files. */
import { closeSync, openSync, readdirSync, readFileSync, readSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";

/** Python with torch and transformers loaded, before any weight. */
export const emptyProcessBytes = 450 * 1024 * 1024;
/** Models are served in fp32. */
const float = 4;
/** As the format's own readers bound it. */
const longestHeader = 100_000_000;

const tensorSchema = z.object({ shape: z.array(z.number().int().nonnegative()) });
const configSchema = z.object({ architectures: z.array(z.string()).nullish(), vocab_size: z.number().nullish() });

interface Tensor {
  name: string;
  numbers: number;
  rows: number;
}

/**
 * The empty process, all weights, and a copy of the embedding where an output head shares its weight: the head is kept
 * in a layout of its own. A folder that cannot be read says so when it loads.
 */
export function expectedBytes(basePath: string): number {
  try {
    const files = readdirSync(basePath).filter((name) => name.endsWith(".safetensors"));
    const tensors = files.flatMap((name) => tensorsOf(join(basePath, name)));
    const numbers = tensors.reduce((sum, tensor) => sum + tensor.numbers, 0);
    return emptyProcessBytes + (numbers + sharedHead(basePath, tensors)) * float;
  } catch {
    return emptyProcessBytes;
  }
}

function sharedHead(basePath: string, tensors: Tensor[]): number {
  const config = configSchema.parse(JSON.parse(readFileSync(join(basePath, "config.json"), "utf8")));
  const writes = config.architectures?.some((name) => /For(CausalLM|ConditionalGeneration)$|LMHeadModel$/.test(name));
  if (!writes || tensors.some(({ name }) => name.endsWith("lm_head.weight"))) return 0;
  const embeddings = tensors.filter(({ rows }) => rows === config.vocab_size);
  return Math.max(0, ...embeddings.map(({ numbers }) => numbers));
}

/** Eight bytes say how long the header is; it is JSON, with each tensor's shape. */
function tensorsOf(path: string): Tensor[] {
  const file = openSync(path, "r");
  try {
    const length = Number(read(file, 0, 8).readBigUInt64LE());
    if (length > longestHeader) throw new Error(`${path} has a header of ${length} bytes`);
    const header = JSON.parse(read(file, 8, length).toString("utf8")) as Record<string, unknown>;
    return Object.entries(header).flatMap(([name, entry]) => {
      if (name === "__metadata__") return [];
      const { shape } = tensorSchema.parse(entry);
      return [{ name, numbers: shape.reduce((product, size) => product * size, 1), rows: shape[0] ?? 0 }];
    });
  } finally {
    closeSync(file);
  }
}

function read(file: number, from: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  if (readSync(file, bytes, 0, length, from) < length) throw new Error("the weight file ends early");
  return bytes;
}
