/** Where a run's checkpoints lie. The trainer writes and prunes them; one that was asked for as a model stays. */
import type { Blobs } from "./ports.js";

interface Place {
  runId: string;
  step: number;
}

/** Blob key of the folder that a checkpoint is as a model. */
export const checkpointModelKey = ({ runId, step }: Place): string => `runs/${runId}/models/${step}`;

/** True once the checkpoint has been written as a model. */
export const isWrittenAsModel = async (blobs: Blobs, place: Place): Promise<boolean> =>
  (await blobs.size(`${checkpointModelKey(place)}/fettle.json`)) !== null;

/** False: pruned, and never asked for. */
export const isStillThere = async (blobs: Blobs, place: Place): Promise<boolean> =>
  (await blobs.size(`runs/${place.runId}/checkpoints/${place.step}/manifest.json`)) !== null ||
  isWrittenAsModel(blobs, place);
