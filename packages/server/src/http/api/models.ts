import { type ClassifyResult, classifyRequestSchema, classifyResultSchema, modelListSchema } from "@fettle/contract";
import { classify } from "../../app/classify.js";
import { listModels } from "../../app/models.js";
import { endpoint, type Router } from "../endpoint.js";
import { baseObject, tunedObject } from "./present.js";

export function ownModelRoutes(router: Router): void {
  const { deps } = router;
  endpoint(
    router,
    {
      method: "get",
      path: "/api/models",
      summary: "Base and tuned models with what is known of them",
      tag: "Models",
      role: "member",
      response: modelListSchema,
    },
    async ({ caller }) => {
      const { bases, tuned } = await listModels(deps, { projectId: caller.projectId });
      const byName = new Map(bases.map((base) => [base.name, base]));
      return {
        object: "list",
        data: [...tuned.map((model) => tunedObject(model, byName.get(model.baseModel))), ...bases.map(baseObject)],
      };
    },
  );

  endpoint(
    router,
    {
      method: "post",
      path: "/api/classify",
      summary: "Labels of texts, with probabilities",
      tag: "Inference",
      role: "member",
      body: classifyRequestSchema,
      response: classifyResultSchema,
    },
    async ({ caller, body, signal }): Promise<ClassifyResult> => {
      const { scores, numTokens } = await classify(deps, { projectId: caller.projectId, request: body, signal });
      const data = scores.map((ranked, index) => ({
        index,
        label: ranked[0]?.label ?? "",
        probability: ranked[0]?.probability ?? 0,
        scores: ranked,
      }));
      return { object: "list", model: body.model, data, usage: { prompt_tokens: numTokens, total_tokens: numTokens } };
    },
  );
}
