/** Runs: starting, steering, following. */
import {
  type CreateRun,
  type RunEventObject,
  runEventListSchema,
  runEventSchema,
  runListSchema,
  type RunObject,
  runObjectSchema,
} from "@fettle/contract";
import type { Connection } from "./connection.js";
import { FettleError } from "./error.js";
import { readEvents } from "./sse.js";

export const endedStatuses: readonly RunObject["status"][] = ["succeeded", "failed", "cancelled"];
export const hasEnded = (run: RunObject): boolean => endedStatuses.includes(run.status);

export type RunNews = { type: "event"; event: RunEventObject } | { type: "ended"; run: RunObject };

/** A stream that is cut is taken up again after the last event, this often in a row without any news. */
const maxBarrenTries = 30;
const reconnectMs = 1000;

export class Runs {
  constructor(private readonly connection: Connection) {}

  create(request: CreateRun): Promise<RunObject> {
    return this.connection.json({ method: "POST", path: "/api/runs", json: request }, runObjectSchema);
  }

  get(runId: string): Promise<RunObject> {
    return this.connection.json({ method: "GET", path: pathOf(runId) }, runObjectSchema);
  }

  /** Newest first. */
  list(query: { after?: string; limit?: number } = {}): Promise<{ data: RunObject[]; has_more: boolean }> {
    return this.connection.json({ method: "GET", path: "/api/runs", query }, runListSchema);
  }

  /** Asks the trainer for a checkpoint; the run is `paused` once it is written. */
  pause(runId: string): Promise<RunObject> {
    return this.connection.json({ method: "POST", path: `${pathOf(runId)}/stop` }, runObjectSchema);
  }

  resume(runId: string): Promise<RunObject> {
    return this.connection.json({ method: "POST", path: `${pathOf(runId)}/resume` }, runObjectSchema);
  }

  cancel(runId: string): Promise<RunObject> {
    return this.connection.json({ method: "POST", path: `${pathOf(runId)}/cancel` }, runObjectSchema);
  }

  /** Events oldest first, after `since`. */
  events(
    runId: string,
    query: { since?: number; limit?: number } = {},
  ): Promise<{ data: RunEventObject[]; has_more: boolean }> {
    return this.connection.json({ method: "GET", path: `${pathOf(runId)}/events`, query }, runEventListSchema);
  }

  /** All events there are, oldest first, in pages. */
  async *allEvents(runId: string, since = 0): AsyncGenerator<RunEventObject> {
    for (let from = since; ; ) {
      const page = await this.events(runId, { since: from, limit: 1000 });
      yield* page.data;
      const last = page.data.at(-1);
      if (!page.has_more || last === undefined) return;
      from = last.seq;
    }
  }

  /**
   * Events as they come, each once and in order, until the run has ended: the last item is `ended`. Goes on over lost
   * connections and restarts of the server. Throws FettleError when the server stays away for half a minute.
   */
  async *follow(
    runId: string,
    { since = 0, signal }: { since?: number; signal?: AbortSignal } = {},
  ): AsyncGenerator<RunNews> {
    let seen = since;
    let barren = 0;
    for (;;) {
      try {
        for await (const news of this.stream(runId, { since: seen, ...(signal && { signal }) })) {
          if (news.type === "event" && news.event.seq <= seen) continue;
          barren = 0;
          if (news.type === "event") seen = news.event.seq;
          yield news;
          if (news.type === "ended") return;
        }
      } catch (error) {
        if (signal?.aborted || isFinal(error)) throw error;
        if (barren >= maxBarrenTries) throw error;
      }
      barren += 1;
      await new Promise((resolve) => setTimeout(resolve, reconnectMs));
      signal?.throwIfAborted();
    }
  }

  private async *stream(
    runId: string,
    { since, signal }: { since: number; signal?: AbortSignal },
  ): AsyncGenerator<RunNews> {
    const headers = { accept: "text/event-stream", "last-event-id": String(since) };
    const response = await this.connection.send({
      method: "GET",
      path: `${pathOf(runId)}/events`,
      headers,
      ...(signal && { signal }),
    });
    for await (const { event, data } of readEvents((response.body as AsyncIterable<Uint8Array> | null) ?? nothing())) {
      if (event === "run.event") yield { type: "event", event: runEventSchema.parse(JSON.parse(data)) };
      else if (event === "run.ended") yield { type: "ended", run: runObjectSchema.parse(JSON.parse(data)) };
    }
  }
}

async function* nothing(): AsyncGenerator<Uint8Array> {}

/** Trying again gives the same answer: the run is unknown, the key is wrong. */
export const isFinal = (error: unknown): boolean =>
  error instanceof FettleError && error.status >= 400 && error.status < 500 && error.status !== 429;

const pathOf = (runId: string): string => `/api/runs/${encodeURIComponent(runId)}`;
