import { createdKeySchema, createKeySchema, deletedSchema, keyListSchema, objectIdSchema } from "@fettle/contract";
import { z } from "zod";
import { createKey, listKeys, revokeKey } from "../../app/keys.js";
import { endpoint, type Router } from "../endpoint.js";
import { keyObject } from "./present.js";

const params = z.object({ key_id: objectIdSchema });
const tag = "Keys";

export function keyRoutes(router: Router): void {
  const { deps } = router;
  endpoint(
    router,
    {
      method: "post",
      path: "/api/keys",
      summary: "Make a key; it is shown this once",
      tag,
      role: "admin",
      body: createKeySchema,
      response: createdKeySchema,
    },
    async ({ caller, body }) => {
      const { record, secret } = await createKey(deps, {
        projectId: caller.projectId,
        name: body.name,
        role: body.role,
        expiresInDays: body.expires_in_days,
      });
      return { ...keyObject(record), key: secret };
    },
  );

  endpoint(
    router,
    {
      method: "get",
      path: "/api/keys",
      summary: "Keys of the project, without their secrets",
      tag,
      role: "admin",
      response: keyListSchema,
    },
    async ({ caller }) => ({
      object: "list",
      data: (await listKeys(deps, { projectId: caller.projectId })).map(keyObject),
    }),
  );

  endpoint(
    router,
    {
      method: "delete",
      path: "/api/keys/{key_id}",
      summary: "Revoke a key, from the next request on",
      tag,
      role: "admin",
      params,
      response: deletedSchema,
    },
    async ({ caller, params: { key_id } }) => {
      await revokeKey(deps, { projectId: caller.projectId, keyId: key_id });
      return { id: key_id, object: "key", deleted: true };
    },
  );
}
