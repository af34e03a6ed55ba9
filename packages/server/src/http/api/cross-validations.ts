import {
  createCrossValidationSchema,
  crossValidationListQuerySchema,
  crossValidationListSchema,
  crossValidationObjectSchema,
  crossValidationParamsSchema,
} from "@fettle/contract";
import {
  cancelCrossValidation,
  createCrossValidation,
  getCrossValidation,
  listCrossValidations,
} from "../../app/cross-validations.js";
import { endpoint, type Router } from "../endpoint.js";
import { crossValidationObject } from "./present-cross-validation.js";

const facts = { tag: "Cross-validations", role: "member" } as const;

export function crossValidationRoutes(router: Router): void {
  recordRoutes(router);
  const { deps } = router;
  const one = { ...facts, params: crossValidationParamsSchema, response: crossValidationObjectSchema };
  endpoint(
    router,
    {
      method: "get",
      path: "/api/cross-validations/{cross_validation_id}",
      summary: "One cross-validation: its folds, and every metric over them",
      ...one,
    },
    async ({ caller, params: { cross_validation_id: id } }) =>
      crossValidationObject(await getCrossValidation(deps, { projectId: caller.projectId, id }), deps.clock.now()),
  );
  endpoint(
    router,
    {
      method: "post",
      path: "/api/cross-validations/{cross_validation_id}/cancel",
      summary: "End a cross-validation and its runs for good; models that are there stay",
      ...one,
    },
    async ({ caller, params: { cross_validation_id: id } }) =>
      crossValidationObject(await cancelCrossValidation(deps, { projectId: caller.projectId, id }), deps.clock.now()),
  );
}

function recordRoutes(router: Router): void {
  const { deps } = router;
  endpoint(
    router,
    {
      method: "post",
      path: "/api/cross-validations",
      summary: "Cross-validate: one run a fold of the rows, each judged by the fold it has not seen",
      ...facts,
      body: createCrossValidationSchema,
      response: crossValidationObjectSchema,
      once: true,
    },
    async ({ caller, body }) => {
      const { pricePerHour } = deps.settings;
      const made = await createCrossValidation(deps, { projectId: caller.projectId, request: body, pricePerHour });
      return crossValidationObject(made, deps.clock.now());
    },
  );
  endpoint(
    router,
    {
      method: "get",
      path: "/api/cross-validations",
      summary: "List cross-validations, newest first",
      ...facts,
      query: crossValidationListQuerySchema,
      response: crossValidationListSchema,
    },
    async ({ caller, query }) => {
      const page = await listCrossValidations(deps, { projectId: caller.projectId, ...query });
      const now = deps.clock.now();
      return {
        object: "list",
        data: page.data.map((view) => crossValidationObject(view, now)),
        has_more: page.hasMore,
      };
    },
  );
}
