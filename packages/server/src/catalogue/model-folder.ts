/** What a model folder is, read from its config.json and the headers of its safetensors files. Weights are not read. */
import { open, readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import type { Family } from "@fettle/contract";
import { z } from "zod";
import { maxHeaderBytes, tensorsOf } from "../app/safetensors.js";

/** Sizes of a model, in the field's own terms. */
export interface ModelShape {
  family: Family;
  hiddenSize: number;
  numLayers: number;
  vocabSize: number;
  contextLength: number;
}

/** The folder holds no model that can be trained here. The message says why. */
export class NotAModel extends Error {}

const encoderTypes = new Set([
  "albert",
  "bert",
  "camembert",
  "deberta",
  "deberta-v2",
  "distilbert",
  "electra",
  "ernie",
  "mpnet",
  "modernbert",
  "roberta",
  "xlm-roberta",
]);
const seq2seqTypes = new Set(["bart", "marian", "mbart", "mt5", "pegasus", "t5", "umt5", "m2m_100", "blenderbot"]);

const size = z.number().int().positive();
const configSchema = z.object({
  model_type: z.string(),
  architectures: z.array(z.string()).nullish(),
  is_encoder_decoder: z.boolean().nullish(),
  vocab_size: size.nullish(),
  hidden_size: size.nullish(),
  n_embd: size.nullish(),
  d_model: size.nullish(),
  dim: size.nullish(),
  num_hidden_layers: size.nullish(),
  n_layer: size.nullish(),
  n_layers: size.nullish(),
  num_layers: size.nullish(),
  max_position_embeddings: size.nullish(),
  n_positions: size.nullish(),
});

/** T5 has relative positions and so no limit of its own; this is what its makers trained with. */
const defaultContextLength = 512;

/** `where` is for the message alone. Throws NotAModel. */
export function readShape(config: unknown, where: string): ModelShape {
  const parsed = configSchema.safeParse(flatten(config));
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw new NotAModel(
      `${where}: this is not a transformers config: ${issue?.path.join(".") || "the file"}: ${issue?.message ?? "unreadable"}.`,
    );
  }
  const c = parsed.data;
  const hiddenSize = c.hidden_size ?? c.n_embd ?? c.d_model ?? c.dim;
  const numLayers = c.num_hidden_layers ?? c.n_layer ?? c.n_layers ?? c.num_layers;
  if (!hiddenSize || !numLayers || !c.vocab_size) {
    throw new NotAModel(
      `${where}: the config of this ${c.model_type} model does not tell its hidden size, number of layers and vocabulary: it is no text model Fettle knows.`,
    );
  }
  return {
    family: familyOf(c, where),
    hiddenSize,
    numLayers,
    vocabSize: c.vocab_size,
    contextLength: c.max_position_embeddings ?? c.n_positions ?? defaultContextLength,
  };
}

/** Models with several parts (Gemma 3, Qwen-VL) keep the text part's sizes one level down. */
function flatten(config: unknown): unknown {
  if (typeof config !== "object" || config === null || !("text_config" in config)) return config;
  const inner = config.text_config;
  return typeof inner === "object" && inner !== null ? { ...inner, ...config } : config;
}

function familyOf(config: z.infer<typeof configSchema>, where: string): Family {
  const architecture = config.architectures?.[0] ?? "";
  if (config.is_encoder_decoder === true || seq2seqTypes.has(config.model_type)) return "seq2seq";
  if (encoderTypes.has(config.model_type)) return "encoder";
  if (/ForCausalLM$|LMHeadModel$/.test(architecture)) return "decoder";
  if (/ForMaskedLM$/.test(architecture)) return "encoder";
  throw new NotAModel(
    `${where}: Fettle cannot tell the family of ${config.model_type} (${architecture || "no architecture named"}): expected a causal, masked or encoder-decoder language model.`,
  );
}

export type FolderFacts = ModelShape & { numParameters: number };

/** Changes when a file comes, goes or is replaced, or the config is written to; null when either is not there. */
export async function stampOf(folder: string): Promise<string | null> {
  try {
    const [own, config] = await Promise.all([
      stat(folder, { bigint: true }),
      stat(join(folder, "config.json"), { bigint: true }),
    ]);
    return [own.ino, own.mtimeNs, config.ino, config.mtimeNs, config.size].join(" ");
  } catch {
    return null;
  }
}

/** Reads the folder. Throws NotAModel. */
export async function readModelFolder(folder: string): Promise<FolderFacts> {
  const path = join(folder, "config.json");
  const text = await readFile(path, "utf8").catch(() => null);
  if (text === null)
    throw new NotAModel(
      `${folder}: there is no config.json. Expected a folder saved by transformers: config.json, tokenizer files, *.safetensors.`,
    );
  let config: unknown;
  try {
    config = JSON.parse(text);
  } catch (cause) {
    throw new NotAModel(`${path}: this is not JSON: ${String(cause)}`);
  }
  const shape = readShape(config, path);
  const weights = (await readdir(folder)).filter((name) => name.endsWith(".safetensors"));
  if (weights.length === 0) {
    throw new NotAModel(
      `${folder}: there are no *.safetensors. Pickled weights (*.bin, *.pt) are never loaded: save the model with safetensors.`,
    );
  }
  const counts = await Promise.all(weights.map((name) => countParameters(join(folder, name))));
  return { ...shape, numParameters: counts.reduce((sum, count) => sum + count, 0) };
}

/** Sum of the tensors' sizes, from the file's header: 8 bytes of length, then JSON. Throws NotAModel. */
export async function countParameters(path: string): Promise<number> {
  const file = await open(path, "r");
  try {
    const length = Buffer.alloc(8);
    await file.read(length, 0, 8, 0);
    const bytes = Number(length.readBigUInt64LE());
    const { size: fileBytes } = await stat(path);
    if (bytes < 2 || bytes > maxHeaderBytes || bytes + 8 > fileBytes)
      throw new NotAModel(`${path}: this is no safetensors file, or it is cut off. Copy it again.`);
    const header = Buffer.alloc(bytes);
    await file.read(header, 0, bytes, 8);
    return tensorsOf(header.toString("utf8")).reduce((sum, { size }) => sum + size, 0);
  } catch (cause) {
    if (cause instanceof NotAModel) throw cause;
    throw new NotAModel(`${path}: the safetensors header is unreadable: ${String(cause)}`);
  } finally {
    await file.close();
  }
}
