/** Figures from the records of two runs. Pure. */

export interface Step {
  step: number;
  loss: number;
  /** Non-pad tokens so far. */
  numTokens: number;
  /** Unix seconds at which the step ended. */
  time: number;
}

export interface RunRecord {
  steps: Step[];
  /** Mean loss over held-out rows after the last step; null when it was not asked for. */
  heldOutLoss: number | null;
  peakRssBytes: number;
  /** From the start of the process to the end of the first step. */
  firstStepSeconds: number;
  /** Of these, those before the step itself: all that stands between asking for a run and its training. */
  startUpSeconds: number;
  /** Whole process: start-up, training, and for ours also saving and checking the artefact. */
  wallSeconds: number;
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const [low, high] = [sorted[(sorted.length - 1) >> 1], sorted[sorted.length >> 1]];
  if (low === undefined || high === undefined) throw new Error("median of nothing");
  return (low + high) / 2;
}

/** Non-pad tokens per second from the end of step `from` (0 is the first) to the end of the last. */
export function tokensPerSecond({ steps }: RunRecord, from = 0): number {
  const [first, last] = [steps[from], steps.at(-1)];
  if (first === undefined || last === undefined || steps.length - from < 2)
    throw new Error(`a rate needs two steps, the run made ${steps.length}`);
  return (last.numTokens - first.numTokens) / (last.time - first.time);
}

const relative = (ours: number, theirs: number): number => Math.abs(ours - theirs) / Math.abs(theirs);

export const lossesOf = ({ steps }: RunRecord): number[] => steps.map((step) => step.loss);

/** Of the losses on held-out rows, as a part of the peer's; null when they were not asked for. */
export function heldOutDifference(ours: RunRecord, peer: RunRecord): number | null {
  if (ours.heldOutLoss === null || peer.heldOutLoss === null) return null;
  return relative(ours.heldOutLoss, peer.heldOutLoss);
}

/**
 * On the same batches: the largest difference of any step or of the held-out loss, as a part of the peer's. Of several
 * epochs only the first has the same batches, so its steps alone are compared.
 */
export function lossDifference(ours: RunRecord, peer: RunRecord, epochs = 1): number {
  const differences = [epochs === 1 ? (heldOutDifference(ours, peer) ?? 0) : 0];
  for (const [index, step] of ours.steps.slice(0, ours.steps.length / epochs).entries()) {
    const other = peer.steps[index];
    if (other === undefined || other.numTokens !== step.numTokens)
      throw new Error(
        `step ${step.step}: the peer read ${other?.numTokens ?? "no"} tokens so far, ours ${step.numTokens}: not the same batches`,
      );
    differences.push(relative(step.loss, other.loss));
  }
  return Math.max(...differences);
}
