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
import { followed } from "./follow.js";

export type CreateSweepRequest = z.input<typeof createSweepSchema>;

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
  follow(sweepId: string, { signal }: { signal?: AbortSignal } = {}): AsyncGenerator<SweepObject> {
    return followed(
      () => this.get(sweepId),
      ({ finished_at }) => finished_at !== null,
      signal,
    );
  }
}

const pathOf = (sweepId: string): string => `/api/sweeps/${encodeURIComponent(sweepId)}`;
