/** Sweeps: starting one, following it, its trials. */
import {
  type createSweepSchema,
  sweepListSchema,
  type SweepObject,
  sweepObjectSchema,
  trialListSchema,
  type TrialObject,
} from "@fettle/contract";
import type { z } from "zod";
import type { Connection } from "./connection.js";
import { isFinal } from "./runs.js";

export type CreateSweepRequest = z.input<typeof createSweepSchema>;

const running: readonly SweepObject["status"][] = ["running", "cancelling"];
const pollMs = 1000;
/** A server that stays away for half a minute is told of. */
const maxMisses = 30;

export class Sweeps {
  constructor(private readonly connection: Connection) {}

  create(request: CreateSweepRequest): Promise<SweepObject> {
    return this.connection.json({ method: "POST", path: "/api/sweeps", json: request }, sweepObjectSchema);
  }

  get(sweepId: string): Promise<SweepObject> {
    return this.connection.json({ method: "GET", path: pathOf(sweepId) }, sweepObjectSchema);
  }

  /** Newest first. */
  list(query: { after?: string; limit?: number } = {}): Promise<{ data: SweepObject[]; has_more: boolean }> {
    return this.connection.json({ method: "GET", path: "/api/sweeps", query }, sweepListSchema);
  }

  /** In the order of their numbers. */
  async trials(sweepId: string): Promise<TrialObject[]> {
    return (await this.connection.json({ method: "GET", path: `${pathOf(sweepId)}/trials` }, trialListSchema)).data;
  }

  cancel(sweepId: string): Promise<SweepObject> {
    return this.connection.json({ method: "POST", path: `${pathOf(sweepId)}/cancel` }, sweepObjectSchema);
  }

  /** How it stands, about once a second; the last is how it ended. Goes on over restarts of the server. */
  async *follow(sweepId: string, { signal }: { signal?: AbortSignal } = {}): AsyncGenerator<SweepObject> {
    for (let misses = 0; ; ) {
      signal?.throwIfAborted();
      try {
        const sweep = await this.get(sweepId);
        misses = 0;
        yield sweep;
        if (!running.includes(sweep.status)) return;
      } catch (error) {
        misses += 1;
        if (isFinal(error) || misses > maxMisses) throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, pollMs));
    }
  }
}

const pathOf = (sweepId: string): string => `/api/sweeps/${encodeURIComponent(sweepId)}`;
