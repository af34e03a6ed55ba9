import {
  completeUploadSchema,
  createUploadSchema,
  maxPartBytes,
  objectIdSchema,
  uploadObjectSchema,
  uploadPartObjectSchema,
} from "@fettle/contract";
import { z } from "zod";
import { addPart, cancelUpload, completeUpload, createUpload, openForPart } from "../../app/uploads.js";
import { AppError } from "../../domain/error.js";
import { endpoint, type Router } from "../endpoint.js";
import { bodyOf, readForm } from "../multipart.js";
import { partObject, uploadObject } from "./present.js";

const params = z.object({ upload_id: objectIdSchema });
const tag = "Uploads";
const partForm = z.strictObject({ data: z.string().meta({ format: "binary" }) });

export function uploadRoutes(router: Router): void {
  partRoutes(router);
  endingRoutes(router);
}

function partRoutes(router: Router): void {
  const { deps } = router;
  endpoint(
    router,
    {
      method: "post",
      path: "/v1/uploads",
      summary: "Begin an upload in parts, at most 8 GB",
      tag,
      role: "member",
      body: createUploadSchema,
      response: uploadObjectSchema,
      once: true,
    },
    async ({ caller, body }) => uploadObject(await createUpload(deps, { projectId: caller.projectId, request: body })),
  );

  endpoint(
    router,
    {
      method: "post",
      path: "/v1/uploads/{upload_id}/parts",
      summary: "Add a part, at most 64 MB",
      tag,
      role: "member",
      params,
      form: partForm,
      response: uploadPartObjectSchema,
    },
    async ({ caller, context, params: { upload_id } }) => {
      const id = { projectId: caller.projectId, uploadId: upload_id };
      await openForPart(deps, id);
      const { file } = await readForm(
        bodyOf(context),
        { contentType: context.req.header("content-type") },
        {
          fileField: "data",
          maxBytes: maxPartBytes,
          sink: (body) => addPart(deps, { ...id, body }),
          // A part nobody names is never joined; it goes away with its upload.
          drop: async () => {},
        },
      );
      if (file === null)
        throw new AppError("invalid_request", "The form has no file: expected a part named `data`. Add it.", {
          param: "data",
        });
      return partObject(file.kept);
    },
  );
}

function endingRoutes(router: Router): void {
  const { deps } = router;
  endpoint(
    router,
    {
      method: "post",
      path: "/v1/uploads/{upload_id}/complete",
      summary: "Join the parts into a file",
      tag,
      role: "member",
      params,
      body: completeUploadSchema,
      response: uploadObjectSchema,
    },
    async ({ caller, body, params: { upload_id } }) => {
      const done = await completeUpload(deps, {
        projectId: caller.projectId,
        uploadId: upload_id,
        partIds: body.part_ids,
        md5: body.md5,
      });
      return uploadObject(done.upload, done.file);
    },
  );

  endpoint(
    router,
    {
      method: "post",
      path: "/v1/uploads/{upload_id}/cancel",
      summary: "Give an upload up",
      tag,
      role: "member",
      params,
      response: uploadObjectSchema,
    },
    async ({ caller, params: { upload_id } }) =>
      uploadObject(await cancelUpload(deps, { projectId: caller.projectId, uploadId: upload_id })),
  );
}
