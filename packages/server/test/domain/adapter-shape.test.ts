/** Going on from an adapter: the run shows the adapter's own rank, alpha and layers, and refuses others. */
import { writeFileSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { ModelRecord } from "../../src/app/ports.js";
import { adapterShape, shapeConflict } from "../../src/domain/adapter-shape.js";
import type { Run, RunRequest } from "../../src/domain/job.js";
import { world } from "./validate-world.js";

const name = "ft:smol:p::12345678";
const config = { peft_type: "LORA", r: 4, lora_alpha: 12, lora_dropout: 0.3, target_modules: ["v_proj", "q_proj"] };

interface Given {
  hyperparameters?: RunRequest["hyperparameters"];
  /** Text of adapter_config.json; null: no such file. */
  file?: string | null;
  /** What the run that made the adapter was asked to adapt. */
  asked?: "all-linear" | string[] | null;
  method?: ModelRecord["method"];
}

/** A run from `name`, whose artefact is on a real disk. */
async function goingOn({ hyperparameters = {}, file = JSON.stringify(config), asked = null, method = "lora" }: Given) {
  const request: RunRequest = { suffix: null, task: null, method: null, hyperparameters, integrations: null };
  const setting = await world({ run: { model: name, baseModel: "smol", request } });
  const record: ModelRecord = {
    name,
    projectId: "p",
    runId: "ftjob-0",
    baseModel: "smol",
    task: "chat",
    method,
    artefact: "runs/ftjob-0/artefact",
    artefactSha256: "",
    labels: null,
    createdAt: 0,
  };
  const { store, blobs } = setting.deps;
  store.models.get = async () => record;
  store.runs.get = async () => (asked === null ? null : ({ hyperparameters: { target_modules: asked } } as Run));
  const folder = blobs.localPath(record.artefact);
  mkdirSync(folder, { recursive: true });
  if (file !== null) writeFileSync(join(folder, "adapter_config.json"), file);
  return setting;
}

describe("going on from an adapter", () => {
  it("shows the rank, alpha and layers of the adapter, each with the reason", async () => {
    const { validate, run, events } = await goingOn({});
    expect(await validate()).toBe("queued");
    expect(run().method).toBe("lora");
    expect(run().hyperparameters).toMatchObject({ lora_r: 4, lora_alpha: 12, target_modules: ["v_proj", "q_proj"] });
    const why = `(taken from ${name}: a run that goes on keeps its adapter's shape).`;
    expect(events.map((event) => event.message)).toEqual(
      expect.arrayContaining([
        `lora_r chosen: 4 ${why}`,
        `lora_alpha chosen: 12 ${why}`,
        `target_modules chosen: v_proj,q_proj ${why}`,
      ]),
    );
  });

  it("says all-linear where the adapter was made so, and takes the same values asked for again", async () => {
    const asked = { lora_r: 4, lora_alpha: 12, target_modules: "all-linear" as const };
    const { validate, run } = await goingOn({ hyperparameters: asked, asked: "all-linear" });
    expect(await validate()).toBe("queued");
    expect(run().hyperparameters).toMatchObject(asked);
    const inOtherOrder = await goingOn({ hyperparameters: { target_modules: ["q_proj", "v_proj"] } });
    expect(await inOtherOrder.validate()).toBe("queued");
  });

  it("keeps its own dropout, which is no part of the shape", async () => {
    const { validate, run } = await goingOn({ hyperparameters: { lora_dropout: 0.2 } });
    await validate();
    expect(run().hyperparameters?.lora_dropout).toBe(0.2);
  });

  it("a whole tuned model has no shape to keep", async () => {
    const { validate, run } = await goingOn({ method: "full", file: null, hyperparameters: { lora_r: 32 } });
    expect(await validate()).toBe("queued");
    expect(run().hyperparameters).toMatchObject({ lora_r: 32, lora_alpha: 64 });
  });

  it("its memory is that of the adapter's rank", async () => {
    const [small, large] = [
      await goingOn({}),
      await goingOn({ file: JSON.stringify({ ...config, r: 256, lora_alpha: 512 }) }),
    ];
    await small.validate();
    await large.validate();
    expect(large.run().estimate?.memoryBytes).toBeGreaterThan((small.run().estimate?.memoryBytes ?? 0) + 1e9);
  });

  it.each([
    [
      "lora_r",
      { lora_r: 8 },
      `lora_r is 8, but ${name} was made with 4: a run that goes on keeps its adapter's shape. Leave lora_r out, or begin from the base model.`,
    ],
    [
      "lora_alpha",
      { lora_r: 4, lora_alpha: 8 },
      `lora_alpha is 8, but ${name} was made with 12: a run that goes on keeps its adapter's shape. Leave lora_alpha out, or begin from the base model.`,
    ],
    [
      "target_modules",
      { target_modules: ["k_proj"] },
      `target_modules is ["k_proj"], but ${name} was made with ["q_proj","v_proj"]: a run that goes on keeps its adapter's shape. Leave target_modules out, or begin from the base model.`,
    ],
  ])("another %s is refused", async (field, hyperparameters, message) => {
    const { validate, run } = await goingOn({ hyperparameters });
    expect(await validate()).toBe("failed");
    expect(run().error).toEqual({ code: "value_out_of_range", param: `hyperparameters.${field}`, message });
  });

  it.each([
    ["is missing", null],
    ["is not JSON", "{"],
    ["has no usable r", '{"lora_alpha":2,"target_modules":["q"]}'],
    ["has no usable r", JSON.stringify({ ...config, r: 1e9 })],
    ["has no usable r", '[{"r":4}]'],
    ["has no usable lora_alpha", JSON.stringify({ ...config, lora_alpha: "12" })],
    ["has no usable target_modules", JSON.stringify({ ...config, target_modules: [{}] })],
    ["has 1000001 bytes, more than 1000000", " ".repeat(1_000_001)],
  ])("a configuration that %s fails the run in words", async (why, file) => {
    const { validate, run } = await goingOn({ file });
    expect(await validate()).toBe("failed");
    expect(run().error).toEqual({
      code: "model_unavailable",
      param: "model",
      message: `The adapter of "${name}" cannot be gone on from: its adapter_config.json ${why}. Put the original file back, or begin from the base model.`,
    });
  });
});

it("a shape is compared by value", () => {
  const read = adapterShape({ ...config, lora_alpha: 12.0 }, { model: name, targets: null });
  if (!read.ok) throw new Error(read.refusal.message);
  expect(shapeConflict(read.value, {})).toBeNull();
  expect(shapeConflict(read.value, { lora_alpha: 12, learning_rate: 1 })).toBeNull();
});
