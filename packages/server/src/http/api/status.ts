import { statfs } from "node:fs/promises";
import { freemem, totalmem } from "node:os";
import { basename } from "node:path";
import { configSchema, type StatusObject, statusSchema } from "@fettle/contract";
import { z } from "zod";
import { endpoint, type Router } from "../endpoint.js";
import { toSeconds } from "../openai/present.js";

export function statusRoutes(router: Router): void {
  const { deps } = router;
  endpoint(
    router,
    {
      method: "get",
      path: "/api/status",
      summary: "Version, loaded models, queue, disk and memory",
      tag: "Status",
      role: "member",
      response: statusSchema,
    },
    async ({ caller }): Promise<StatusObject> => {
      const [database, disk, runs] = await Promise.all([
        deps.store.ping(),
        statfs(deps.settings.home),
        countRuns(router, caller.projectId),
      ]);
      return {
        version: deps.settings.version,
        started_at: toSeconds(deps.settings.startedAt),
        database: database ? "ok" : "down",
        // Only the folder's name: where it is on this machine is nobody's business on the wire.
        models: deps.inference.loaded().map((model) => ({
          base: basename(model.basePath),
          adapters: model.adapters.length,
          rss_bytes: model.rssBytes,
          busy: model.busy,
        })),
        runs,
        disk: { free_bytes: disk.bavail * disk.bsize, total_bytes: disk.blocks * disk.bsize },
        memory: { free_bytes: freemem(), total_bytes: totalmem(), server_rss_bytes: process.memoryUsage.rss() },
      };
    },
  );

  const draft7 = z.toJSONSchema(configSchema, { target: "draft-7", io: "input" });
  endpoint(
    router,
    {
      method: "get",
      path: "/api/schemas/config",
      summary: "JSON Schema (draft-07) of fettle.yaml",
      tag: "Status",
      role: "member",
      response: z.looseObject({}),
    },
    async () => draft7,
  );
}

/** Of this project only: how busy others are is theirs to know. */
async function countRuns({ deps }: Router, projectId: string): Promise<StatusObject["runs"]> {
  const counts = { validating_files: 0, queued: 0, running: 0, paused: 0 };
  const open = await deps.store.runs.withStatus(["validating_files", "queued", "running", "paused"]);
  for (const run of open)
    if (run.projectId === projectId && run.status in counts) counts[run.status as keyof typeof counts] += 1;
  return counts;
}
