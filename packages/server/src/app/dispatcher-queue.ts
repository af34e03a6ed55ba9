/** Which queued run is next, and why the others wait. Pure. */
import { predictedBytes, type Run } from "../domain/job.js";

export interface Capacity {
  /** Trainers at once on this machine; null: as many as memory allows. */
  maxConcurrent: number | null;
  /** Memory that trainers may take together. */
  memoryBytes: number;
}

/** Assumed for a run without an estimate. */
const unknownMemoryBytes = 2e9;

interface Line {
  projectId: string;
  runs: Run[];
  /** Runs at work or placed before. */
  load: number;
  served: number;
  /** Arrival of its first run. */
  rank: number;
}

/**
 * Fair order: the project with the fewest runs at work is next; among equals the one served longest ago, then first
 * come first served. `queued` is in order of arrival; `served` counts up with each start, by project.
 */
export function fairOrder(queued: readonly Run[], running: readonly Run[], served: ReadonlyMap<string, number>): Run[] {
  const lines = new Map<string, Line>();
  queued.forEach((run, rank) => {
    const { projectId } = run;
    const load = running.filter((other) => other.projectId === projectId).length;
    const line = lines.get(projectId) ?? { projectId, runs: [], load, served: served.get(projectId) ?? -1, rank };
    line.runs.push(run);
    lines.set(projectId, line);
  });
  const order: Run[] = [];
  const open = [...lines.values()];
  // A run placed here is served after every start so far.
  const servedNow = Math.max(0, ...served.values());
  for (let turn = 1; open.length > 0; turn += 1) {
    open.sort((a, b) => a.load - b.load || a.served - b.served || a.rank - b.rank);
    const line = open[0];
    const run = line?.runs.shift();
    if (line === undefined || run === undefined) {
      open.shift();
      continue;
    }
    order.push(run);
    line.load += 1;
    line.served = servedNow + turn;
  }
  return order;
}

/** A trainer that has read the rows knows better than the estimate made before it started. */
const memoryOf = (run: Run): number => predictedBytes(run) ?? run.estimate?.memoryBytes ?? unknownMemoryBytes;
const gigabytes = (bytes: number): string => `${(bytes / 1e9).toFixed(1)} GB`;

/** Null: the run may start now. Else the reason it waits. With nothing running, any run may start. */
export function reasonToWait(run: Run, running: readonly Run[], capacity: Capacity): string | null {
  if (running.length === 0) return null;
  const count = running.length === 1 ? "1 run is" : `${running.length} runs are`;
  if (capacity.maxConcurrent !== null && running.length >= capacity.maxConcurrent)
    return `${count} at work, and at most ${capacity.maxConcurrent} may be at once`;
  const free = capacity.memoryBytes - running.reduce((sum, other) => sum + memoryOf(other), 0);
  if (memoryOf(run) <= free) return null;
  return `it needs about ${gigabytes(memoryOf(run))} of memory, and ${gigabytes(Math.max(0, free))} of the ${gigabytes(capacity.memoryBytes)} for training are free while ${count} at work`;
}

/** Beyond this place in the queue, exact positions are not written. */
const exactPositions = 100;

export function waitingText(position: number, reason: string): string {
  const place =
    position <= exactPositions
      ? `Position ${position} in the queue`
      : `More than ${exactPositions} runs are before this one in the queue`;
  return `${place}: ${reason}.`;
}
