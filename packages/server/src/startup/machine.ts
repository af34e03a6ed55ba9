/** What this machine gives, and how it is shared between training and answering. */
import { availableParallelism, totalmem } from "node:os";
import type { Config } from "../config.js";

export interface Shares {
  /** Bytes trainers may take together, without the one that waits. */
  trainingBytes: number;
  /** Whether a trainer waits for the next run. */
  keepsTrainerReady: boolean;
  /** Bytes model processes may take together. */
  inferenceBytes: number;
  cores: number;
  trainerThreads: number;
}

/** The rest is for the system, the database and this server. */
const trainingShare = 0.8;
const inferenceShare = 0.5;

/** Of a trainer that waits: its libraries, measured 0.33 GB, and its verifier's own pages. */
const waitingBytes = 0.5e9;
/** Below this memory it would be missed. */
const waitsFromBytes = 8e9;

/** In a container the limit counts, not the host's memory. */
export function sharesOf(config: Pick<Config, "runs" | "inference">): Shares {
  const limit = process.constrainedMemory();
  const memory = limit > 0 && limit < totalmem() ? limit : totalmem();
  const cores = availableParallelism();
  const { maxConcurrent, numThreads, keepTrainerReady } = config.runs;
  const keepsTrainerReady = keepTrainerReady === "auto" ? memory >= waitsFromBytes : keepTrainerReady;
  return {
    trainingBytes: Math.floor(memory * trainingShare - (keepsTrainerReady ? waitingBytes : 0)),
    keepsTrainerReady,
    inferenceBytes:
      config.inference.memoryBytes === "auto" ? Math.floor(memory * inferenceShare) : config.inference.memoryBytes,
    cores,
    trainerThreads:
      numThreads === "auto"
        ? Math.max(1, Math.floor(cores / (maxConcurrent === "auto" ? 1 : maxConcurrent)))
        : numThreads,
  };
}
