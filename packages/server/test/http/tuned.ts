/** A run of the world's store as a trainer leaves it: a checkpoint on disk, and a model when it succeeded. */
import { join } from "node:path";
import type { Run } from "../../src/domain/job.js";
import { writeModel } from "../fake-exporter.js";
import { freshId, storedRun } from "../store/samples.js";
import type { World } from "./world.js";

export interface TunedRun {
  run: Run;
  /** `ft:…` */
  model: string;
  /** `ft:…:ckpt-step-5` */
  checkpoint: string;
  /** Its folder below the run's. */
  folder(...path: string[]): string;
}

export async function tunedRun({ deps }: World, change: Partial<Run> = {}): Promise<TunedRun> {
  const base = change.baseModel ?? "smollm2-135m-instruct";
  const run = await storedRun(deps.store, {
    projectId: "default",
    status: "running",
    model: base,
    baseModel: base,
    ...change,
  });
  const { projectId, task, method, labels } = run;
  if (task === null || method === null) throw new Error("a run without task or method leaves nothing");
  const model = `ft:${base}:${projectId}::${run.id.slice(-8)}`;
  const checkpoint = `${model}:ckpt-step-5`;
  const folder = (...path: string[]): string => join(deps.blobs.localPath(`runs/${run.id}`), ...path);
  await writeModel(folder("artefact"), { "adapter_model.safetensors": "weights of the end" });
  await writeModel(folder("checkpoints", "5"), { "manifest.json": "{}" });
  const lease = await deps.store.runs.acquire(run.id, "test", { ttlMs: 60_000 });
  if (lease === null) throw new Error("the lease is taken");
  const createdAt = 1_700_000_000_000;
  await deps.store.runs.ingest(lease, {
    events: [],
    offset: 1,
    checkpoints: [
      {
        id: freshId("ftckpt_"),
        runId: run.id,
        step: 5,
        modelName: checkpoint,
        path: "checkpoints/5",
        metrics: {},
        createdAt,
      },
    ],
    model: {
      name: model,
      projectId,
      runId: run.id,
      baseModel: base,
      task,
      method,
      artefact: `runs/${run.id}/artefact`,
      artefactSha256: "0".repeat(64),
      labels,
      createdAt,
    },
    change: (before) => ({ ...before, status: "failed" }),
  });
  return { run, model, checkpoint, folder };
}
