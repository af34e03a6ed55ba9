/** Live events of one run: everything since `since`, then each new one as it is committed, until the run has ended. */
import { endedStatuses, type Run, type RunEvent } from "../domain/job.js";
import type { AppDeps } from "./deps.js";
import { getRun } from "./jobs.js";
import type { Page } from "./ports.js";

export type Live = { type: "event"; event: RunEvent } | { type: "quiet" } | { type: "ended"; run: Run };

const pageSize = 100;
/** Also how soon a revoked key loses its stream: the caller checks at each `quiet`. */
const quietMs = 4000;

export async function listOwnEvents(
  deps: Pick<AppDeps, "store">,
  input: { projectId: string; runId: string; since: number; limit: number },
): Promise<Page<RunEvent>> {
  await getRun(deps, input);
  return deps.store.runs.events(input.projectId, input.runId, {
    sinceSeq: input.since,
    limit: input.limit,
    order: "asc",
  });
}

/**
 * Yields `quiet` when all there is has been told, and at least every 4 s after. The subscription starts before the first read, so nothing committed
 * in between is missed; the run is read before its events, so `ended` comes after the last of them.
 */
export async function* followEvents(
  deps: Pick<AppDeps, "store">,
  input: { projectId: string; runId: string; since: number; signal: AbortSignal },
): AsyncIterable<Live> {
  const bell = new Bell(input.signal);
  const unsubscribe = deps.store.runs.onChange((runId) => {
    if (runId === input.runId) bell.ring();
  });
  let since = input.since;
  try {
    while (!input.signal.aborted) {
      bell.quieten();
      const run = await getRun(deps, input);
      let more = true;
      while (more && !input.signal.aborted) {
        const page = await deps.store.runs.events(input.projectId, input.runId, {
          sinceSeq: since,
          limit: pageSize,
          order: "asc",
        });
        for (const event of page.data) {
          yield { type: "event", event };
          since = event.seq;
        }
        more = page.hasMore;
      }
      if (endedStatuses.includes(run.status)) {
        yield { type: "ended", run };
        return;
      }
      yield { type: "quiet" };
      await bell.wait(quietMs);
    }
  } finally {
    unsubscribe();
  }
}

/** Waits until rung, aborted, or `ms` have passed; a ring between two waits is not lost. */
class Bell {
  private rung = false;
  private wake: (() => void) | null = null;

  constructor(private readonly signal: AbortSignal) {}

  ring(): void {
    this.rung = true;
    this.wake?.();
  }

  quieten(): void {
    this.rung = false;
  }

  async wait(ms: number): Promise<void> {
    if (this.rung || this.signal.aborted) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(done, ms);
      const { signal } = this;
      function done(): void {
        clearTimeout(timer);
        signal.removeEventListener("abort", done);
        resolve();
      }
      this.wake = done;
      signal.addEventListener("abort", done, { once: true });
    });
    this.wake = null;
  }
}
