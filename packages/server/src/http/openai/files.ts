import {
  deletedSchema,
  fileFormSchema,
  fileListQuerySchema,
  fileListSchema,
  fileObjectSchema,
  maxFileBytes,
  objectIdSchema,
} from "@fettle/contract";
import { z } from "zod";
import {
  createFile,
  deleteFile,
  dropBytes,
  getFile,
  type KeptBytes,
  keepBytes,
  listFiles,
  readFile,
} from "../../app/files.js";
import { AppError } from "../../domain/error.js";
import { download } from "../download.js";
import { endpoint, type Router } from "../endpoint.js";
import { once } from "../idempotency.js";
import { bodyOf, readForm } from "../multipart.js";
import { parseWith } from "../parse.js";
import { fileObject } from "./present.js";

const params = z.object({ file_id: objectIdSchema });
const tag = "Files";
const documentedForm = fileFormSchema.extend({ file: z.string().meta({ format: "binary" }) });

export function fileRoutes(router: Router): void {
  createRoute(router);
  recordRoutes(router);
}

function createRoute(router: Router): void {
  const { deps } = router;
  endpoint(
    router,
    {
      method: "post",
      path: "/v1/files",
      summary: "Upload a file, at most 512 MB",
      tag,
      role: "member",
      form: documentedForm,
      response: fileObjectSchema,
    },
    async ({ caller, context }) => {
      const form = await readForm<KeptBytes>(
        bodyOf(context),
        { contentType: context.req.header("content-type") },
        {
          fileField: "file",
          maxBytes: maxFileBytes,
          sink: (bytes) => keepBytes(deps, bytes),
          drop: (kept) => dropBytes(deps, kept.fileId),
        },
      );
      const { file } = form;
      if (file === null)
        throw new AppError(
          "invalid_request",
          "The form has no file: expected a part named `file`, with a file name. Add it.",
          { param: "file" },
        );
      let used = false;
      try {
        const fields = parseWith(fileFormSchema, form.fields);
        const content = JSON.stringify([file.kept.sha256, file.filename, fields]);
        return await once(deps, { context, route: "post /v1/files", content }, async () => {
          used = true;
          const made = await createFile(deps, {
            projectId: caller.projectId,
            kept: file.kept,
            filename: file.filename,
            purpose: fields.purpose,
            expiresAfterSeconds: fields.expires_after?.seconds ?? null,
          });
          return Response.json(fileObject(made));
        });
      } finally {
        // Refused, or a retry answered from memory: these bytes belong to no file.
        if (!used) await dropBytes(deps, file.kept.fileId);
      }
    },
  );
}

function recordRoutes(router: Router): void {
  const { deps } = router;
  endpoint(
    router,
    {
      method: "get",
      path: "/v1/files",
      summary: "List files, newest first",
      tag,
      role: "member",
      query: fileListQuerySchema,
      response: fileListSchema,
    },
    async ({ caller, query }) => {
      const page = await listFiles(deps, { projectId: caller.projectId, ...query });
      const [first] = page.data;
      const last = page.data.at(-1);
      return {
        object: "list",
        data: page.data.map(fileObject),
        ...(first && last && { first_id: first.id, last_id: last.id }),
        has_more: page.hasMore,
      };
    },
  );

  endpoint(
    router,
    {
      method: "get",
      path: "/v1/files/{file_id}",
      summary: "One file",
      tag,
      role: "member",
      params,
      response: fileObjectSchema,
    },
    async ({ caller, params: { file_id } }) =>
      fileObject(await getFile(deps, { projectId: caller.projectId, fileId: file_id })),
  );

  endpoint(
    router,
    {
      method: "delete",
      path: "/v1/files/{file_id}",
      summary: "Delete a file no run is reading",
      tag,
      role: "member",
      params,
      response: deletedSchema,
    },
    async ({ caller, params: { file_id } }) => {
      await deleteFile(deps, { projectId: caller.projectId, fileId: file_id });
      return { id: file_id, object: "file", deleted: true };
    },
  );

  endpoint(
    router,
    {
      method: "get",
      path: "/v1/files/{file_id}/content",
      summary: "The bytes of a file",
      tag,
      role: "member",
      params,
      response: { contentType: "application/octet-stream" },
    },
    async ({ caller, params: { file_id } }) => {
      const { file, bytes } = await readFile(deps, { projectId: caller.projectId, fileId: file_id });
      return download(bytes, { filename: file.filename, contentType: "application/octet-stream", size: file.bytes });
    },
  );
}
