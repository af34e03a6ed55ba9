/** How much memory and time a run will take, before it starts. Pure. An estimate, on the high side: fp32, no recomputation. */
import type { Family, Method } from "@fettle/contract";
import { readsVirtualTokens } from "./methods.js";
import type { Pace } from "./pace.js";

export interface ModelSize {
  numParameters: number;
  hiddenSize: number;
  numLayers: number;
  vocabSize: number;
}

export interface Load {
  family: Family;
  method: Method;
  /** Rows at once: per_device_train_batch_size. */
  batchSize: number;
  /** Tokens of the longest row in a batch. */
  length: number;
  loraR: number;
  /** Of the method freeze. */
  trainableLayers?: number;
  /** Whether every position is compared with the whole vocabulary: true where text is written. */
  generates: boolean;
}

/** Python, torch and the tokenizer, before any model is loaded: measured 0.55 to 0.75 GB. */
const processBytes = 0.7e9;
const float = 4;
/** fp32 weight, gradient and AdamW's two moments. */
const trainedBytes = 4 * float;
/**
 * What one layer keeps for the backward pass, in floats per token and hidden unit: 34 bytes in fp16 without attention
 * maps, so 17 values (Korthikanti et al. 2022, equation 2; SDPA keeps no maps). An encoder-decoder's decoder layers
 * hold a second attention.
 */
const floatsPerLayer: Record<Family, number> = { decoder: 17, encoder: 17, seq2seq: 24 };
/** All linear maps of a layer together take in and give out about so many hidden widths. */
const linearWidths = 20;

type Trains = Pick<Load, "method" | "loraR" | "trainableLayers">;

export function trainedParameters(size: ModelSize, { method, loraR, trainableLayers = 1 }: Trains): number {
  if (method === "full") return size.numParameters;
  if (method === "freeze") {
    const inLayers = Math.max(0, size.numParameters - size.vocabSize * size.hiddenSize);
    return Math.round(inLayers * Math.min(1, trainableLayers / size.numLayers));
  }
  if (method === "head") return size.hiddenSize * (size.hiddenSize + 2);
  // Keys, values and what enters the feed-forward's second layer, about four widths.
  if (method === "ia3") return size.numLayers * 6 * size.hiddenSize;
  // A hundred virtual tokens, more than most use: their keys and values in each layer.
  if (readsVirtualTokens(method)) return 100 * 2 * size.numLayers * size.hiddenSize;
  return size.numLayers * loraR * linearWidths * size.hiddenSize;
}

/** Bytes at the peak of training. */
export function memoryBytes(size: ModelSize, load: Load): number {
  const trained = trainedParameters(size, load);
  // A base in 4 bits is loaded in 16 before it is made small.
  const frozen = load.method === "full" ? 0 : size.numParameters * (load.method === "qlora" ? float / 2 : float);
  const tokens = load.batchSize * load.length;
  // A frozen body keeps nothing for a backward pass: one layer's worth at a time.
  const { method, trainableLayers = 1 } = load;
  const layers = method === "head" ? 1 : method === "freeze" ? trainableLayers : size.numLayers;
  const activations = tokens * size.hiddenSize * floatsPerLayer[load.family] * layers * float;
  const logits = load.generates ? tokens * size.vocabSize * float : 0;
  return Math.round(processBytes + frozen + trained * trainedBytes + activations + logits);
}

export interface Work {
  /** Tokens of all rows, once. */
  tokens: number;
  epochs: number;
  method: Method;
  family: Family;
  /** Of the method freeze. */
  trainableLayers?: number;
}

/** Floating point operations of training. Per parameter and token: 2 forward, 2 for the inputs' gradients, 2 for the weights'. */
export function operationsOf(size: ModelSize, { tokens, epochs, family, ...how }: Work): number {
  // The embedding is looked up, not multiplied with; a decoder's counts once more as its output map.
  const embedding = size.vocabSize * size.hiddenSize;
  const multiplied =
    family === "encoder" ? Math.max(size.numParameters - embedding, size.numParameters * 0.1) : size.numParameters;
  return perToken(size, how) * multiplied * tokens * epochs;
}

function perToken(size: ModelSize, { method, trainableLayers = 1 }: Pick<Work, "method" | "trainableLayers">): number {
  if (method === "full") return 6;
  if (method === "head") return 2;
  return method === "freeze" ? 2 + 4 * Math.min(1, trainableLayers / size.numLayers) : 4;
}

/** Loading, tokenising, saving and the check of the saved model. */
const overheadSeconds: readonly [least: number, most: number] = [8, 45];

/** Seconds from start to end, [least, most]. */
export function secondsRange(operations: number, { slow, fast }: Pick<Pace, "slow" | "fast">): [number, number] {
  const [least, most] = overheadSeconds;
  return [Math.round(operations / fast + least), Math.round(operations / slow + most)];
}

export const gigabytes = (bytes: number, digits = 1): string => `${(bytes / 1e9).toFixed(digits)} GB`;
