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

/**
 * How far the losses are apart, as a part of the peer's. On the same batches: the largest difference of any step or
 * of the held-out loss. On batches of another order only the held-out loss can be compared.
 */
export function lossDifference(ours: RunRecord, peer: RunRecord, sameBatches: boolean): number | null {
  const differences: number[] = [];
  if (ours.heldOutLoss !== null && peer.heldOutLoss !== null)
    differences.push(relative(ours.heldOutLoss, peer.heldOutLoss));
  if (sameBatches)
    for (const [index, step] of ours.steps.entries()) {
      const other = peer.steps[index];
      if (other === undefined || other.numTokens !== step.numTokens)
        throw new Error(
          `step ${step.step}: the peer read ${other?.numTokens ?? "no"} tokens so far, ours ${step.numTokens}: not the same batches`,
        );
      differences.push(relative(step.loss, other.loss));
    }
  return differences.length === 0 ? null : Math.max(...differences);
}
