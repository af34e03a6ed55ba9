import {
  createRunSchema,
  objectIdSchema,
  runEventListSchema,
  runEventQuerySchema,
  runListQuerySchema,
  runListSchema,
  runObjectSchema,
} from "@fettle/contract";
import { z } from "zod";
import { followEvents, type Live, listOwnEvents } from "../../app/events.js";
import { createOwnRun, getRun, listRuns, steerRun } from "../../app/jobs.js";
import { authenticate } from "../../app/keys.js";
import { presentedKey } from "../auth.js";
import { endpoint, type Router } from "../endpoint.js";
import { answerTo } from "../errors.js";
import { following } from "../openai/answer.js";
import { parseWith } from "../parse.js";
import { primed, sseResponse } from "../sse.js";
import { runEventObject, runObject } from "./present.js";

const params = z.object({ run_id: objectIdSchema });
const tag = "Runs";
const lastEventIdSchema = z.coerce.number().int().min(0).max(Number.MAX_SAFE_INTEGER);

export function runRoutes(router: Router): void {
  recordRoutes(router);
  steerRoutes(router);
  eventRoute(router);
}

function recordRoutes(router: Router): void {
  const { deps } = router;
  endpoint(
    router,
    {
      method: "post",
      path: "/api/runs",
      summary: "Start a run",
      tag,
      role: "member",
      body: createRunSchema,
      response: runObjectSchema,
      once: true,
    },
    async ({ caller, body }) => runObject(await createOwnRun(deps, { projectId: caller.projectId, request: body })),
  );

  endpoint(
    router,
    {
      method: "get",
      path: "/api/runs",
      summary: "List runs, newest first",
      tag,
      role: "member",
      query: runListQuerySchema,
      response: runListSchema,
    },
    async ({ caller, query }) => {
      const page = await listRuns(deps, { projectId: caller.projectId, ...query });
      return { object: "list", data: page.data.map(runObject), has_more: page.hasMore };
    },
  );

  endpoint(
    router,
    {
      method: "get",
      path: "/api/runs/{run_id}",
      summary: "One run",
      tag,
      role: "member",
      params,
      response: runObjectSchema,
    },
    async ({ caller, params: { run_id } }) =>
      runObject(await getRun(deps, { projectId: caller.projectId, runId: run_id })),
  );
}

function steerRoutes(router: Router): void {
  const { deps } = router;
  for (const [word, to] of [
    ["stop", "pause"],
    ["resume", "resume"],
    ["cancel", "cancel"],
  ] as const) {
    endpoint(
      router,
      {
        method: "post",
        path: `/api/runs/{run_id}/${word}`,
        summary: steering[word],
        tag,
        role: "member",
        params,
        response: runObjectSchema,
      },
      async ({ caller, params: { run_id } }) =>
        runObject(await steerRun(deps, { projectId: caller.projectId, runId: run_id, to })),
    );
  }
}

function eventRoute(router: Router): void {
  const { deps } = router;
  endpoint(
    router,
    {
      method: "get",
      path: "/api/runs/{run_id}/events",
      summary:
        "Events of a run, oldest first; as a live stream with `Accept: text/event-stream`, going on after `Last-Event-ID`",
      tag,
      role: "member",
      params,
      query: runEventQuerySchema,
      response: runEventListSchema,
    },
    async ({ caller, params: { run_id }, query, context, signal }) => {
      const run = { projectId: caller.projectId, runId: run_id };
      if (!context.req.header("accept")?.includes("text/event-stream")) {
        const page = await listOwnEvents(deps, { ...run, ...query });
        return { object: "list", data: page.data.map(runEventObject), has_more: page.hasMore };
      }
      const resume = context.req.header("last-event-id");
      const since = resume === undefined ? query.since : parseWith(lastEventIdSchema, resume, "header Last-Event-ID");
      const abort = following(signal);
      const live = await primed(followEvents(deps, { ...run, since, signal: abort.signal }));
      const stillAllowed = (): Promise<unknown> => authenticate(deps, presentedKey(context.req.raw.headers));
      return sseResponse(frames(live, stillAllowed), {
        abort,
        onError: (error) => `event: error\ndata: ${JSON.stringify(answerTo(error, context.var.requestId).body)}\n\n`,
      });
    },
  );
}

const steering = {
  stop: "Pause a run: it writes a checkpoint and waits",
  resume: "Let a paused run go on from its last checkpoint",
  cancel: "End a run for good; its checkpoints stay",
};

/** A key that was revoked meanwhile loses its stream at the next quiet moment: `stillAllowed` throws then. */
async function* frames(live: AsyncIterable<Live>, stillAllowed: () => Promise<unknown>): AsyncIterable<string> {
  yield "retry: 1000\n\n";
  for await (const item of live) {
    if (item.type === "event")
      yield `id: ${item.event.seq}\nevent: run.event\ndata: ${JSON.stringify(runEventObject(item.event))}\n\n`;
    if (item.type === "quiet") {
      await stillAllowed();
      yield ": quiet\n\n";
    }
    if (item.type === "ended") yield `event: run.ended\ndata: ${JSON.stringify(runObject(item.run))}\n\n`;
  }
}
