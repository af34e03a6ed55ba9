import {
  createSweepSchema,
  sweepListQuerySchema,
  sweepListSchema,
  sweepObjectSchema,
  sweepParamsSchema,
  trialListSchema,
} from "@fettle/contract";
import { cancelSweep, createSweep, getSweep, listSweeps } from "../../app/sweeps.js";
import { endpoint, type Router } from "../endpoint.js";
import { sweepObject, trialObject } from "./present-sweep.js";

const tag = "Sweeps";
const kind = "sweep";

export function sweepRoutes(router: Router): void {
  recordRoutes(router);
  const { deps } = router;
  const one = { tag, role: "member", params: sweepParamsSchema } as const;
  endpoint(
    router,
    {
      method: "get",
      path: "/api/sweeps/{sweep_id}/trials",
      summary: "Every trial of a sweep with its values and its score, in order: also what parallel coordinates show",
      ...one,
      response: trialListSchema,
    },
    async ({ caller, params: { sweep_id } }) => {
      const view = await getSweep(deps, { projectId: caller.projectId, kind, id: sweep_id });
      return { object: "list", data: view.trials.map((trial) => trialObject(view.sweep, trial, deps.clock.now())) };
    },
  );
  endpoint(
    router,
    {
      method: "post",
      path: "/api/sweeps/{sweep_id}/cancel",
      summary: "End a sweep and its trials for good; models that are there stay",
      ...one,
      response: sweepObjectSchema,
    },
    async ({ caller, params: { sweep_id } }) =>
      sweepObject(await cancelSweep(deps, { projectId: caller.projectId, kind, id: sweep_id }), deps.clock.now()),
  );
}

function recordRoutes(router: Router): void {
  const { deps } = router;
  endpoint(
    router,
    {
      method: "post",
      path: "/api/sweeps",
      summary:
        "Search hyperparameters: many runs of one model and file, and whether the best beats the automatic values",
      tag,
      role: "member",
      body: createSweepSchema,
      response: sweepObjectSchema,
      once: true,
    },
    async ({ caller, body }) => {
      const { pricePerHour } = deps.settings;
      const sweep = await createSweep(deps, { projectId: caller.projectId, request: body, pricePerHour });
      return sweepObject({ sweep, trials: [] }, deps.clock.now());
    },
  );
  endpoint(
    router,
    {
      method: "get",
      path: "/api/sweeps",
      summary: "List sweeps, newest first",
      tag,
      role: "member",
      query: sweepListQuerySchema,
      response: sweepListSchema,
    },
    async ({ caller, query }) => {
      const page = await listSweeps(deps, { projectId: caller.projectId, kind, ...query });
      const now = deps.clock.now();
      return { object: "list", data: page.data.map((view) => sweepObject(view, now)), has_more: page.hasMore };
    },
  );
  endpoint(
    router,
    {
      method: "get",
      path: "/api/sweeps/{sweep_id}",
      summary: "One sweep: how far it is, its best so far, in the end its verdict",
      tag,
      role: "member",
      params: sweepParamsSchema,
      response: sweepObjectSchema,
    },
    async ({ caller, params: { sweep_id } }) =>
      sweepObject(await getSweep(deps, { projectId: caller.projectId, kind, id: sweep_id }), deps.clock.now()),
  );
}
