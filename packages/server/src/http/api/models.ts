import {
  exportErrorName,
  exportMergedHeader,
  exportQuerySchema,
  modelListSchema,
  modelNameSchema,
} from "@fettle/contract";
import { z } from "zod";
import { type ExportPart, exportModel } from "../../app/export-model.js";
import type { Log } from "../../app/ports.js";
import { listModels } from "../../app/models.js";
import { download } from "../download.js";
import { endpoint, type Router } from "../endpoint.js";
import { answerTo } from "../errors.js";
import { primed } from "../sse.js";
import { tarComment, tarEnd, tarFile } from "../tar.js";
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
      method: "get",
      path: "/api/models/{model+}/export",
      summary: `The files of a tuned model as a tar archive. A fault after its beginning is its last file, ${exportErrorName}`,
      tag: "Models",
      role: "member",
      params: z.object({ model: modelNameSchema }),
      query: exportQuerySchema,
      response: { contentType: "application/x-tar" },
    },
    async ({ caller, params: { model }, query, context, signal }) => {
      const merge = query.merged === "true";
      const { merged, parts } = await exportModel(deps, {
        projectId: caller.projectId,
        name: model,
        merged: merge,
        signal,
        ...(query.format !== undefined && { format: query.format }),
        ...(query.quantize !== undefined && { quantize: query.quantize }),
        ...(query.prune !== undefined && { prune: query.prune }),
      });
      const archive = tarOf(await primed(parts), { requestId: context.var.requestId, log: deps.log });
      const answer = download(archive, { filename: `${model}.tar`, contentType: "application/x-tar" });
      answer.headers.set(exportMergedHeader, String(merged));
      return answer;
    },
  );
}

/** The status is sent by the time a part fails: what went wrong is told in the archive. */
async function* tarOf(
  parts: AsyncIterable<ExportPart>,
  { requestId, log }: { requestId: string; log: Log },
): AsyncGenerator<Uint8Array> {
  let isInFile = false;
  try {
    for await (const part of parts) {
      isInFile = part.type === "file";
      if (part.type === "file") yield* tarFile(part);
      else yield tarComment(part.doing);
      isInFile = false;
    }
  } catch (error) {
    log.error({ err: error, request: requestId }, "an export ended with a fault");
    // In the middle of a file nothing can be said: the connection is cut.
    if (isInFile) throw error;
    const content = Buffer.from(JSON.stringify(answerTo(error, requestId).body));
    yield* tarFile({ name: exportErrorName, bytes: content.length, content: once(content) });
  }
  yield tarEnd();
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}
