import { dataListQuerySchema, dataListSchema, dataObjectSchema, faultSchema, objectIdSchema } from "@fettle/contract";
import { z } from "zod";
import { getFile, listFiles, readFaults } from "../../app/files.js";
import { download } from "../download.js";
import { endpoint, type Router } from "../endpoint.js";
import { dataObject } from "./present.js";

const params = z.object({ file_id: objectIdSchema });
const tag = "Data";

/** Importing data is uploading a file: POST /v1/files with purpose `fine-tune`. */
export function dataRoutes(router: Router): void {
  const { deps } = router;
  endpoint(
    router,
    {
      method: "get",
      path: "/api/data",
      summary: "Data files with what reading them found",
      tag,
      role: "member",
      query: dataListQuerySchema,
      response: dataListSchema,
    },
    async ({ caller, query }) => {
      const page = await listFiles(deps, { projectId: caller.projectId, purpose: "fine-tune", ...query });
      return { object: "list", data: page.data.map(dataObject), has_more: page.hasMore };
    },
  );

  endpoint(
    router,
    {
      method: "get",
      path: "/api/data/{file_id}",
      summary: "One data file with its report",
      tag,
      role: "member",
      params,
      response: dataObjectSchema,
    },
    async ({ caller, params: { file_id } }) =>
      dataObject(await getFile(deps, { projectId: caller.projectId, fileId: file_id })),
  );

  endpoint(
    router,
    {
      method: "get",
      path: "/api/data/{file_id}/faults",
      summary: "Every fault, one JSON object a line",
      tag,
      role: "member",
      params,
      response: { contentType: "application/x-ndjson", schema: faultSchema },
    },
    async ({ caller, params: { file_id } }) => {
      const { file, bytes } = await readFaults(deps, { projectId: caller.projectId, fileId: file_id });
      return download(bytes, { filename: `${file.id}-faults.jsonl`, contentType: "application/x-ndjson" });
    },
  );
}
