import { hyperparameters } from "../../../../tests/recovery/platform.js";
import { transition } from "../../src/domain/job.js";
import { eventually } from "../store/samples.js";
import type { World } from "./world.js";

/** As if its trainer had done its work. */
export async function endTrial(world: Pick<World, "deps">, runId: string, loss: number): Promise<void> {
  const run = await eventually("the run", () => world.deps.store.runs.get("default", runId));
  const at = Date.now();
  const data = { step: 3, total_steps: 3, valid_loss: loss, accuracy: 0.5, best: true };
  await world.deps.store.runs.update(run.id, (now) => {
    const validated = transition(now, {
      type: "validated",
      task: "classification",
      method: "full",
      hyperparameters: { ...hyperparameters, ...now.request.hyperparameters },
      labels: null,
      estimate: null,
    });
    const started = validated.ok ? transition(validated.run, { type: "started", at: at - 60_000 }) : validated;
    const ended = started.ok
      ? transition(started.run, {
          type: "succeeded",
          fineTunedModel: `ft:${run.id}`,
          resultFile: null,
          trainedTokens: 1,
          trainSeconds: 1,
          at,
        })
      : started;
    if (!ended.ok) throw new Error(ended.reason);
    const said = { id: world.deps.ids.make("ftevent-"), key: "evaluation:3", createdAt: at, level: "info" as const };
    return { run: ended.run, events: [{ ...said, type: "metrics" as const, message: "evaluated", data }] };
  });
}
