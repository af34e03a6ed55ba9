import { deletedSchema, modelNameSchema, openaiModelListSchema, openaiModelSchema } from "@fettle/contract";
import { z } from "zod";
import { deleteModel, getModel, listModels } from "../../app/models.js";
import { endpoint, type Router } from "../endpoint.js";
import { baseModelObject, foundModelObject, tunedModelObject } from "./present.js";

const params = z.object({ model: modelNameSchema });
const tag = "Models";

export function modelRoutes(router: Router): void {
  const { deps } = router;
  endpoint(
    router,
    {
      method: "get",
      path: "/v1/models",
      summary: "Base and tuned models",
      tag,
      role: "member",
      response: openaiModelListSchema,
    },
    async ({ caller }) => {
      const { bases, tuned } = await listModels(deps, { projectId: caller.projectId });
      return { object: "list", data: [...bases.map(baseModelObject), ...tuned.map(tunedModelObject)] };
    },
  );

  endpoint(
    router,
    {
      method: "get",
      path: "/v1/models/{model+}",
      summary: "One model",
      tag,
      role: "member",
      params,
      response: openaiModelSchema,
    },
    async ({ caller, params: { model } }) =>
      foundModelObject(await getModel(deps, { projectId: caller.projectId, name: model }), caller.projectId),
  );

  endpoint(
    router,
    {
      method: "delete",
      path: "/v1/models/{model+}",
      summary: "Delete a tuned model",
      tag,
      role: "member",
      params,
      response: deletedSchema,
    },
    async ({ caller, params: { model } }) => {
      await deleteModel(deps, { projectId: caller.projectId, name: model });
      return { id: model, object: "model", deleted: true };
    },
  );
}
