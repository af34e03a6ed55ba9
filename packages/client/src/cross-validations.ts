/** Cross-validations: starting one, following it. */
import {
  type createCrossValidationSchema,
  crossValidationListSchema,
  type CrossValidationObject,
  crossValidationObjectSchema,
} from "@fettle/contract";
import type { z } from "zod";
import type { Connection } from "./connection.js";
import { followed } from "./follow.js";

export type CreateCrossValidationRequest = z.input<typeof createCrossValidationSchema>;

const path = "/api/cross-validations";

export class CrossValidations {
  constructor(private readonly connection: Connection) {}

  create(request: CreateCrossValidationRequest): Promise<CrossValidationObject> {
    return this.connection.json({ method: "POST", path, json: request }, crossValidationObjectSchema);
  }

  get(id: string): Promise<CrossValidationObject> {
    return this.connection.json({ method: "GET", path: pathOf(id) }, crossValidationObjectSchema);
  }

  /** Newest first. */
  list(query: { after?: string; limit?: number } = {}): Promise<{ data: CrossValidationObject[]; has_more: boolean }> {
    return this.connection.json({ method: "GET", path, query }, crossValidationListSchema);
  }

  cancel(id: string): Promise<CrossValidationObject> {
    return this.connection.json({ method: "POST", path: `${pathOf(id)}/cancel` }, crossValidationObjectSchema);
  }

  /** How it stands, about once a second; the last is how it ended. Goes on over restarts of the server. */
  follow(id: string, { signal }: { signal?: AbortSignal } = {}): AsyncGenerator<CrossValidationObject> {
    return followed(
      () => this.get(id),
      ({ finished_at }) => finished_at !== null,
      signal,
    );
  }
}

const pathOf = (id: string): string => `${path}/${encodeURIComponent(id)}`;
