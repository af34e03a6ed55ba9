import {
  checkpointListQuerySchema,
  createJobSchema,
  jobCheckpointListSchema,
  jobEventListSchema,
  jobListQuerySchema,
  jobListSchema,
  jobObjectSchema,
  metadataSchema,
  objectIdSchema,
} from "@fettle/contract";
import type { Context } from "hono";
import { z } from "zod";
import { getRun, listCheckpoints, listRunEvents, listRuns, steerRun } from "../../app/jobs.js";
import { createJob } from "../../app/jobs-request.js";
import type { HttpEnv } from "../deps.js";
import { endpoint, type Router } from "../endpoint.js";
import { parseWith } from "../parse.js";
import { checkpointObject, eventObject, jobObject } from "./present.js";

const params = z.object({ fine_tuning_job_id: objectIdSchema });
const tag = "Fine-tuning";
const base = "/v1/fine_tuning/jobs";

export function jobRoutes(router: Router): void {
  recordRoutes(router);
  steerRoutes(router);
  historyRoutes(router);
}

function recordRoutes(router: Router): void {
  const { deps } = router;
  endpoint(
    router,
    {
      method: "post",
      path: base,
      summary: "Create a fine-tuning job",
      tag,
      role: "member",
      body: createJobSchema,
      response: jobObjectSchema,
      once: true,
    },
    async ({ caller, body }) => jobObject(await createJob(deps, { projectId: caller.projectId, request: body })),
  );

  endpoint(
    router,
    {
      method: "get",
      path: base,
      summary: "List fine-tuning jobs, newest first",
      tag,
      role: "member",
      query: jobListQuerySchema,
      response: jobListSchema,
    },
    async ({ caller, query, context }) => {
      const metadata = metadataFilter(context);
      const page = await listRuns(deps, { projectId: caller.projectId, ...query, ...(metadata && { metadata }) });
      return { object: "list", data: page.data.map(jobObject), has_more: page.hasMore };
    },
  );

  endpoint(
    router,
    {
      method: "get",
      path: `${base}/{fine_tuning_job_id}`,
      summary: "One fine-tuning job",
      tag,
      role: "member",
      params,
      response: jobObjectSchema,
    },
    async ({ caller, params: { fine_tuning_job_id } }) =>
      jobObject(await getRun(deps, { projectId: caller.projectId, runId: fine_tuning_job_id })),
  );
}

function steerRoutes(router: Router): void {
  const { deps } = router;
  for (const to of ["cancel", "pause", "resume"] as const) {
    endpoint(
      router,
      {
        method: "post",
        path: `${base}/{fine_tuning_job_id}/${to}`,
        summary: `${to} a fine-tuning job`,
        tag,
        role: "member",
        params,
        response: jobObjectSchema,
      },
      async ({ caller, params: { fine_tuning_job_id } }) =>
        jobObject(await steerRun(deps, { projectId: caller.projectId, runId: fine_tuning_job_id, to })),
    );
  }
}

function historyRoutes(router: Router): void {
  const { deps } = router;
  endpoint(
    router,
    {
      method: "get",
      path: `${base}/{fine_tuning_job_id}/events`,
      summary: "Events of a job, newest first",
      tag,
      role: "member",
      params,
      query: jobListQuerySchema,
      response: jobEventListSchema,
    },
    async ({ caller, params: { fine_tuning_job_id }, query }) => {
      const page = await listRunEvents(deps, { projectId: caller.projectId, runId: fine_tuning_job_id, ...query });
      return { object: "list", data: page.data.map(eventObject), has_more: page.hasMore };
    },
  );

  endpoint(
    router,
    {
      method: "get",
      path: `${base}/{fine_tuning_job_id}/checkpoints`,
      summary: "Checkpoints of a job, newest first",
      tag,
      role: "member",
      params,
      query: checkpointListQuerySchema,
      response: jobCheckpointListSchema,
    },
    async ({ caller, params: { fine_tuning_job_id }, query }) => {
      const page = await listCheckpoints(deps, { projectId: caller.projectId, runId: fine_tuning_job_id, ...query });
      return {
        object: "list",
        data: page.data.map(checkpointObject),
        first_id: page.data[0]?.id ?? null,
        last_id: page.data.at(-1)?.id ?? null,
        has_more: page.hasMore,
      };
    },
  );
}

/** `metadata[team]=a` filters; an empty `metadata=` is how the SDKs send null, and filters nothing. */
function metadataFilter(context: Context<HttpEnv>): Record<string, string> | undefined {
  const pairs = Object.entries(context.req.query()).flatMap(([name, value]) => {
    const key = /^metadata\[([^\]]{1,64})\]$/.exec(name)?.[1];
    return key === undefined ? [] : [[key, value] as const];
  });
  return pairs.length === 0 ? undefined : parseWith(metadataSchema, Object.fromEntries(pairs), "query");
}
