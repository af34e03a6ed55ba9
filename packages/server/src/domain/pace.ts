/** How fast this machine trains: learnt from runs that ended here, else from one measured product, else assumed. Pure. */
import type { Method } from "@fettle/contract";

/** A run that ended well on this machine. */
export interface Trained {
  baseModel: string;
  method: Method;
  /** As `operationsOf` counts them, so that what the count leaves out is in the speed. */
  operations: number;
  /** Spent in optimiser steps. */
  seconds: number;
}

export interface Pace {
  /** Floating point operations a second, of all cores together. */
  slow: number;
  fast: number;
  /** What this rests on, in words. */
  basis: string;
}

export interface PaceInput {
  baseModel: string;
  method: Method;
  cores: number;
  trained: readonly Trained[];
  /** Floating point operations a second of a product of matrices on all cores; null: not measured. */
  product: number | null;
}

/** Below this, starting up is most of what was timed. */
const leastSeconds = 5;
/** Rows of other lengths, and other work beside it. */
const sameModel = 1.5;
const otherModel = 2.5;
/** The share of a product's speed that training reaches on a CPU: a guess, wide on purpose, until a run has ended here. */
const shareOfProduct: readonly [least: number, most: number] = [0.3, 0.9];
/** Operations a second and core: from a loaded or old core to a fast one with AVX-512. */
const assumedPerCore: readonly [slow: number, fast: number] = [12e9, 75e9];

export function paceOf({ baseModel, method, cores, trained, product }: PaceInput): Pace {
  const telling = trained.filter(({ seconds, operations }) => seconds >= leastSeconds && operations > 0);
  const same = telling.filter((run) => run.baseModel === baseModel && run.method === method);
  if (same.length > 0)
    return learnt(same, {
      margin: sameModel,
      basis: `${finished(same)} of ${baseModel} with ${method} on this machine`,
    });
  if (telling.length > 0)
    return learnt(telling, {
      margin: otherModel,
      basis: `${finished(telling)} of other models or methods on this machine`,
    });
  if (product !== null && product > 0) {
    const [least, most] = shareOfProduct;
    const basis = `a matrix product measured on this machine, ${Math.round(product / 1e9)} GFLOP/s; no run has ended here yet`;
    return { slow: product * least, fast: product * most, basis };
  }
  const [slow, fast] = assumedPerCore;
  const basis = `${cores === 1 ? "1 core" : `${cores} cores`} of usual speed; nothing has been measured on this machine yet`;
  return { slow: slow * cores, fast: fast * cores, basis };
}

function learnt(runs: readonly Trained[], { margin, basis }: { margin: number; basis: string }): Pace {
  const rates = runs.map(({ operations, seconds }) => operations / seconds);
  return { slow: Math.min(...rates) / margin, fast: Math.max(...rates) * margin, basis };
}

const finished = ({ length }: readonly Trained[]): string =>
  length === 1 ? "1 finished run" : `${length} finished runs`;
