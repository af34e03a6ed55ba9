import { createEmbeddingSchema, type EmbeddingList, embeddingListSchema } from "@fettle/contract";
import { embed } from "../../app/embeddings.js";
import { endpoint, type Router } from "../endpoint.js";

export function embeddingRoutes(router: Router): void {
  endpoint(
    router,
    {
      method: "post",
      path: "/v1/embeddings",
      summary: "Vectors of texts",
      tag: "Inference",
      role: "member",
      body: createEmbeddingSchema,
      response: embeddingListSchema,
    },
    async ({ caller, body, signal }): Promise<EmbeddingList> => {
      const { vectors, numTokens } = await embed(router.deps, { projectId: caller.projectId, request: body, signal });
      const base64 = body.encoding_format === "base64";
      return {
        object: "list",
        data: vectors.map((vector, index) => ({
          object: "embedding",
          index,
          embedding: base64 ? littleEndian(vector) : [...vector],
        })),
        model: body.model,
        usage: { prompt_tokens: numTokens, total_tokens: numTokens },
      };
    },
  );
}

/** Base64 of float32, little-endian whatever this machine is: both official clients decode it so. */
export function littleEndian(vector: Float32Array): string {
  const bytes = Buffer.alloc(vector.length * 4);
  for (const [index, value] of vector.entries()) bytes.writeFloatLE(value, index * 4);
  return bytes.toString("base64");
}
