/** The trainer that ships, on a tiny random model: killed, paused and resumed by the dispatcher, it ends with the same bits. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { Dispatcher } from "../../packages/server/src/app/dispatcher.js";
import type { Store } from "../../packages/server/src/app/ports.js";
import { type Run, transition } from "../../packages/server/src/domain/job.js";
import { connectStore } from "../../packages/server/src/store/open.js";
import { createTestDatabase, type TestDatabase } from "../../packages/server/test/database.js";
import { eventually } from "../../packages/server/test/store/samples.js";
import { answeredRows, canonical, makeTinyModel, realTrainer } from "../tiny-model.js";
import { buildParts, dispatch, oneModel, patientTimes, queueRun, tinyModel } from "./platform.js";

let database: TestDatabase;
let store: Store;
let dispatcher: Dispatcher;
let home: string;
beforeAll(async () => {
  database = await createTestDatabase();
  store = await connectStore(database.url);
  home = mkdtempSync(join(tmpdir(), "fettle-real-"));
});
afterAll(async () => {
  await dispatcher?.close();
  await store.close();
  await database.drop();
  rmSync(home, { recursive: true, force: true });
});

it("killed, then paused and resumed, it ends with the bits of a run that nobody disturbed", {
  timeout: 300_000,
}, async () => {
  const model = join(home, "model");
  makeTinyModel("decoder", model);
  const parts = buildParts(store, home, realTrainer);
  const text = canonical(answeredRows);
  const [calm, troubled] = [await queueRun(parts, {}, text), await queueRun(parts, {}, text)] as [Run, Run];
  dispatcher = dispatch(parts, {
    catalogue: oneModel({ ...tinyModel, path: model }),
    checkpointSeconds: 0,
    times: patientTimes,
  });
  const read = async (run: Run): Promise<Run> => (await store.runs.get("proj_a", run.id)) ?? run;
  const reaches = (run: Run, what: string, probe: (now: Run) => boolean) =>
    eventually(
      what,
      async () => {
        const now = await read(run);
        if (now.status === "failed") throw new Error(JSON.stringify(now.error));
        return probe(now) ? now : null;
      },
      120_000,
    );
  const steer = (type: "pause_requested" | "resume_requested") =>
    store.runs.update(troubled.id, (now) => {
      const next = transition(now, { type });
      if (!next.ok) throw new Error(next.reason);
      return { run: next.run, events: [] };
    });

  await reaches(troubled, "a few steps", (now) => now.step >= 3);
  await parts.runner.kill(troubled.id);
  await reaches(troubled, "steps of the second trainer", (now) => now.attempt === 2 && now.step >= 6);
  await steer("pause_requested");
  const paused = await reaches(
    troubled,
    "pause or end",
    (now) => now.status === "paused" || now.status === "succeeded",
  );
  if (paused.status === "paused") await steer("resume_requested");
  const done = [
    await reaches(calm, "end", (now) => now.status === "succeeded"),
    await reaches(troubled, "end", (now) => now.status === "succeeded"),
  ];

  const weights = done.map((run) =>
    readFileSync(parts.blobs.localPath(`runs/${run.id}/artefact/adapter_model.safetensors`)),
  );
  expect(weights[1]?.equals(weights[0] ?? Buffer.alloc(0))).toBe(true);
  const losses = await Promise.all(
    done.map(async (run) =>
      (await store.runs.events("proj_a", run.id, { limit: 1000, order: "asc" })).data
        .filter((event) => event.message.includes("training loss"))
        .map((event) => [event.data?.step, event.data?.train_loss]),
    ),
  );
  expect(losses[0]?.map(([step]) => step)).toEqual(
    Array.from({ length: done[0]?.totalSteps ?? 0 }, (_, index) => index + 1),
  );
  expect(losses[1]).toEqual(losses[0]);
});
