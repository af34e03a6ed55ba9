import {
  type ClassifyResult,
  classifyRequestSchema,
  classifyResultSchema,
  type PredictResult,
  predictRequestSchema,
  predictResultSchema,
} from "@fettle/contract";
import { classify } from "../../app/classify.js";
import { predict } from "../../app/predict.js";
import { endpoint, type Router } from "../endpoint.js";

export function predictionRoutes(router: Router): void {
  const { deps } = router;
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

  endpoint(
    router,
    {
      method: "post",
      path: "/api/predict",
      summary: "Numbers, entities or answers, of a model tuned for them",
      tag: "Inference",
      role: "member",
      body: predictRequestSchema,
      response: predictResultSchema,
    },
    async ({ caller, body, signal }): Promise<PredictResult> => {
      const { predictions, numTokens } = await predict(deps, { projectId: caller.projectId, request: body, signal });
      const data = predictions.map((prediction, index) => ({ index, prediction }));
      return { object: "list", model: body.model, data, usage: { prompt_tokens: numTokens, total_tokens: numTokens } };
    },
  );
}
