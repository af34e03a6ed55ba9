import { taskSchema } from "@fettle/contract";
import { afterAll, beforeAll, expect, test } from "vitest";
import { createWorld, type Json, type World } from "./world.js";

let world: World;
let file: string;
beforeAll(async () => {
  world = await createWorld();
  file = await world.upload();
});
afterAll(() => world.close());

const jobs = "/v1/fine_tuning/jobs";
const create = (body: object = {}, headers: Record<string, string> = {}) =>
  world.send("POST", jobs, { body: { model: "smollm2-135m-instruct", training_file: file, ...body }, headers });

test("a new job is shown as queued, with auto values and no null the specification forbids", async () => {
  const { status, json } = await create({ suffix: "a".repeat(64), seed: 7, metadata: { team: "x" } });
  expect(status).toBe(200);
  expect(json).toMatchObject({
    object: "fine_tuning.job",
    status: "queued",
    model: "smollm2-135m-instruct",
    seed: 7,
    result_files: [],
    error: null,
    metadata: { team: "x" },
    hyperparameters: { n_epochs: "auto", batch_size: "auto", learning_rate_multiplier: "auto" },
    method: { type: "supervised" },
  });
  expect(json.id).toMatch(/^ftjob-[A-Za-z0-9]{24}$/);
  expect(json.organization_id).not.toBeNull();
  expect((await world.send("GET", `/api/runs/${json.id}`)).json.status).toBe("validating_files");
});

test("a job without a seed gets one", async () => {
  const { json } = await create();
  expect(json.seed).toBeGreaterThanOrEqual(0);
});

test("hyperparameters are taken from the method, from the old place, and by our names", async () => {
  const old = await create({ hyperparameters: { n_epochs: 2, batch_size: "auto" } });
  expect(old.json.hyperparameters).toMatchObject({ n_epochs: 2, batch_size: "auto" });
  const own = await create({
    method: {
      type: "supervised",
      supervised: {
        method: "lora",
        task: "chat",
        hyperparameters: { num_train_epochs: 3, learning_rate: 0.001, lora_r: "auto" },
      },
    },
  });
  expect(own.json.method.supervised).toMatchObject({
    method: "lora",
    task: "chat",
    hyperparameters: { n_epochs: 3, learning_rate: 0.001 },
  });
  expect(own.json.method.supervised.hyperparameters).not.toHaveProperty("lora_r");
});

test("metadata can set task and method for clients that can send nothing else", async () => {
  const { json } = await create({ metadata: { task: "classification", method: "head" } });
  expect(json.method.supervised).toMatchObject({ task: "classification", method: "head" });
  const note = await create({ metadata: { task: "ticket-17" } });
  const events = await world.send("GET", `${jobs}/${note.json.id}/events`);
  expect(events.json.data.map((event: Json) => event.message)).toContain(
    `metadata.task is "ticket-17": not one of ${taskSchema.options.join(", ")}, so it was kept as a note only.`,
  );
});

test("fields of other tools are accepted and told as a warning event", async () => {
  const { json } = await create({ trainingType: "globalstandard" });
  const { json: events } = await world.send("GET", `${jobs}/${json.id}/events`);
  expect(events.data).toContainEqual(
    expect.objectContaining({ level: "warn", message: 'The field "trainingType" is not known here and was ignored.' }),
  );
  expect(events.data).toContainEqual(
    expect.objectContaining({ level: "info", message: `Created fine-tuning job: ${json.id}` }),
  );
});

const refusals: [name: string, body: object, error: object][] = [
  [
    "an unknown model names the nearest",
    { model: "smollm2-135m-instuct" },
    {
      code: "model_not_found",
      param: "model",
      message:
        'The model "smollm2-135m-instuct" does not exist or you do not have access to it. Did you mean "smollm2-135m-instruct"?',
    },
  ],
  [
    "an unknown file",
    { training_file: "file-nope" },
    {
      code: "not_found",
      param: "training_file",
      message: 'No file "file-nope" in this project. List the files to see their ids: GET /v1/files.',
    },
  ],
  ["an unknown validation file", { validation_file: "file-nope" }, { code: "not_found", param: "validation_file" }],
  [
    "a suffix of 65 characters",
    { suffix: "s".repeat(65) },
    {
      code: "value_out_of_range",
      param: "suffix",
      message: "`suffix` is a text of 65 characters: expected at most 64 characters.",
    },
  ],
  ["an empty suffix", { suffix: "" }, { code: "value_out_of_range", param: "suffix" }],
  [
    "learning rate 2",
    { method: { type: "supervised", supervised: { hyperparameters: { learning_rate: 2 } } } },
    {
      code: "value_out_of_range",
      param: "method.supervised.hyperparameters.learning_rate",
      message:
        '`method.supervised.hyperparameters.learning_rate` is 2: expected a number above 0, at most 0.1, or "auto". Typical: 0.0002 for lora, 0.00002 to 0.00005 for full, 0.001 for head.',
    },
  ],
  [
    "51 epochs",
    { hyperparameters: { n_epochs: 51 } },
    {
      code: "value_out_of_range",
      param: "hyperparameters.n_epochs",
      message: '`hyperparameters.n_epochs` is 51: expected a whole number from 1 to 50, or "auto". Typical: 1 to 5.',
    },
  ],
  [
    "a word for a number",
    { hyperparameters: { n_epochs: "many" } },
    {
      code: "invalid_request",
      message:
        '`hyperparameters.n_epochs` is "many": expected a whole number from 1 to 50, or "auto". Typical: 1 to 5.',
    },
  ],
  [
    "a misspelt hyperparameter",
    { method: { type: "supervised", supervised: { hyperparameters: { learning_rat: 0.1 } } } },
    {
      code: "unknown_field",
      param: "method.supervised.hyperparameters.learning_rat",
      message: '`method.supervised.hyperparameters.learning_rat` is not known. Did you mean "learning_rate"?',
    },
  ],
  [
    "a beta past 2",
    { method: { type: "dpo", dpo: { hyperparameters: { beta: 2.1 } } } },
    { code: "value_out_of_range", param: "method.dpo.hyperparameters.beta" },
  ],
  [
    "dpo with what is another method's",
    { method: { type: "dpo", supervised: {} } },
    {
      code: "unknown_field",
      param: "method.supervised",
      message: 'method.supervised does not belong to the method "dpo": expected only `type` and `dpo`. Leave it out.',
    },
  ],
  [
    "method reinforcement",
    { method: { type: "reinforcement", reinforcement: {} } },
    {
      code: "unsupported_method",
      param: "method.type",
      message:
        'method.type is "reinforcement": only "supervised" and "dpo" are built. Use method.type "supervised", or "dpo" with preferences.',
    },
  ],
  ["a seed past 2^31", { seed: 2147483648 }, { code: "value_out_of_range", param: "seed" }],
  [
    "17 metadata pairs",
    { metadata: Object.fromEntries(Array.from({ length: 17 }, (_, index) => [`k${index}`, "v"])) },
    { code: "invalid_request", param: "metadata" },
  ],
  [
    "no training file",
    { training_file: undefined },
    { code: "invalid_request", param: "training_file", message: "`training_file` is missing: expected text." },
  ],
];
test.each(refusals)("refused: %s", async (_name, body, error) => {
  const { json } = await create(body);
  expect(json.error).toMatchObject(error);
});

test("a file of another purpose, one that was refused, or one that was deleted cannot be trained on", async () => {
  const other = await world.upload("x", { purpose: "evals" });
  expect((await create({ training_file: other })).json.error).toMatchObject({
    code: "file_not_usable",
    message: `File "${other}" has the purpose "evals": expected "fine-tune". Upload it again with purpose "fine-tune".`,
  });
  const broken = await world.upload("{");
  await world.deps.store.files.setProcessed("default", broken, {
    status: "error",
    statusDetails: "Line 1, column 2: not JSON.",
    report: null,
  });
  expect((await create({ training_file: broken })).json.error).toMatchObject({
    code: "file_not_usable",
    message: `File "${broken}" cannot be trained on: Line 1, column 2: not JSON.`,
  });
  const deleted = await world.upload();
  await world.send("DELETE", `/v1/files/${deleted}`);
  for (let turn = 0; turn < 2; turn += 1) expect((await create({ training_file: deleted })).status).toBe(404);
});

test("cancel, pause and resume take an empty body sent as JSON, and refuse with 409 that must not be retried", async () => {
  const { json } = await create();
  const steer = (to: string) =>
    world.send("POST", `${jobs}/${json.id}/${to}`, { headers: { "content-type": "application/json" }, body: "" });
  await world.deps.store.runs.update(json.id, (run) => ({ run: { ...run, status: "queued" }, events: [] }));
  expect((await steer("pause")).json.status).toBe("paused");
  expect((await steer("resume")).json.status).toBe("queued");
  expect((await steer("cancel")).json.status).toBe("cancelled");
  const again = await steer("cancel");
  expect(again.status).toBe(409);
  expect(again.headers.get("x-should-retry")).toBe("false");
  expect(again.json.error).toMatchObject({
    code: "conflict",
    message: `Run ${json.id} is cancelled: only a run that is not ended can be cancelled.`,
  });
  expect((await steer("resume")).json.error.code).toBe("conflict");
});

test("jobs page by the last id, newest first, and filter by metadata; an empty filter is none", async () => {
  const fresh = await createWorld();
  try {
    const training_file = await fresh.upload();
    const ids: string[] = [];
    for (let index = 0; index < 5; index += 1) {
      const { json } = await fresh.send("POST", jobs, {
        body: { model: "minilm", training_file, metadata: { parity: index % 2 ? "odd" : "even" } },
      });
      ids.unshift(json.id);
    }
    const seen: string[] = [];
    for (let more = true; more; ) {
      const { json } = await fresh.send("GET", `${jobs}?limit=2${seen.length ? `&after=${seen.at(-1)}` : ""}`);
      seen.push(...json.data.map((job: Json) => job.id));
      more = json.has_more;
    }
    expect(seen).toEqual(ids);
    const odd = await fresh.send("GET", `${jobs}?metadata[parity]=odd`);
    expect(odd.json.data).toHaveLength(2);
    expect((await fresh.send("GET", `${jobs}?metadata=`)).json.data).toHaveLength(5);
    expect((await fresh.send("GET", `${jobs}?limit=101`)).json.error.code).toBe("value_out_of_range");
    expect((await fresh.send("GET", `${jobs}?limt=1`)).json.error).toMatchObject({
      code: "unknown_field",
      message: '`limt` is not known in the query. Did you mean "limit"?',
    });
  } finally {
    await fresh.close();
  }
});

test("checkpoints carry the model name to ask for, and no metric that was not measured", async () => {
  const { json } = await create();
  const lease = await leased(json.id);
  await world.deps.store.runs.ingest(lease, {
    events: [],
    offset: 10,
    checkpoints: [
      {
        id: "ftckpt_1",
        runId: json.id,
        step: 5,
        modelName: "ft:smollm2-135m-instruct:default::abc:ckpt-step-5",
        path: "checkpoints/5",
        metrics: { train_loss: 1.5, learning_rate: 1 },
        createdAt: 1_700_000_000_500,
      },
    ],
  });
  const { json: page } = await world.send("GET", `${jobs}/${json.id}/checkpoints`);
  expect(page).toEqual({
    object: "list",
    data: [
      {
        id: "ftckpt_1",
        object: "fine_tuning.job.checkpoint",
        created_at: 1_700_000_000,
        fine_tuning_job_id: json.id,
        fine_tuned_model_checkpoint: "ft:smollm2-135m-instruct:default::abc:ckpt-step-5",
        step_number: 5,
        metrics: { step: 5, train_loss: 1.5 },
      },
    ],
    first_id: "ftckpt_1",
    last_id: "ftckpt_1",
    has_more: false,
  });
  expect((await world.send("GET", "/v1/models/ft:smollm2-135m-instruct:default::abc:ckpt-step-5")).json.object).toBe(
    "model",
  );
});

async function leased(runId: string) {
  const lease = await world.deps.store.runs.acquire(runId, "test", { ttlMs: 60_000 });
  if (lease === null) throw new Error("the lease is taken");
  return lease;
}

test("a retry of the SDK gives the job of the first attempt; a second first attempt gives a second job", async () => {
  const body = { suffix: "retry" };
  const first = await create(body, { "x-stainless-retry-count": "0" });
  const retry = await create(body, { "x-stainless-retry-count": "1" });
  expect(retry.json.id).toBe(first.json.id);
  expect(retry.headers.get("idempotent-replayed")).toBe("true");
  const second = await create(body, { "x-stainless-retry-count": "0" });
  expect(second.json.id).not.toBe(first.json.id);
  expect((await create(body, { "x-stainless-retry-count": "2" })).json.id).toBe(second.json.id);
});

test("a retry whose first attempt never came is a first attempt, and so is one after the window", async () => {
  const lost = await create({ suffix: "lost" }, { "x-stainless-retry-count": "1" });
  expect(lost.status).toBe(200);
  expect((await create({ suffix: "lost" }, { "x-stainless-retry-count": "2" })).json.id).toBe(lost.json.id);
  world.advance(30 * 60_000);
  expect((await create({ suffix: "lost" }, { "x-stainless-retry-count": "1" })).json.id).not.toBe(lost.json.id);
});

test("a retry across the border of two windows still finds the first attempt", async () => {
  const window = 10 * 60_000;
  world.advance(window - (world.deps.clock.now() % window) - 50);
  const first = await create({ suffix: "border" }, { "x-stainless-retry-count": "0" });
  world.advance(100);
  expect((await create({ suffix: "border" }, { "x-stainless-retry-count": "1" })).json.id).toBe(first.json.id);
});

test("Idempotency-Key: same body once, other body 409, also under 20 requests at once", async () => {
  const headers = { "idempotency-key": "order-1" };
  const answers = await Promise.all(Array.from({ length: 20 }, () => create({ suffix: "idem" }, headers)));
  const ids = new Set(answers.filter((answer) => answer.status === 200).map((answer) => answer.json.id));
  expect(ids.size).toBe(1);
  for (const busy of answers.filter((answer) => answer.status !== 200)) {
    expect(busy.status).toBe(409);
    expect(busy.headers.get("x-should-retry")).toBe("true");
    expect(busy.headers.get("retry-after")).toBe("1");
  }
  expect((await create({ suffix: "idem" }, headers)).json.id).toBe([...ids][0]);
  expect((await create({ suffix: "other" }, headers)).json.error).toMatchObject({
    code: "idempotency_mismatch",
    param: "Idempotency-Key",
  });
});

test("a refused request is not remembered under its key", async () => {
  const headers = { "idempotency-key": "refused-1" };
  expect((await create({ model: "none-such" }, headers)).status).toBe(404);
  expect((await create({ model: "none-such" }, headers)).status).toBe(404);
});

test("a retried upload gives the same file and keeps no second copy", async () => {
  const form = (): FormData => {
    const made = new FormData();
    made.set("purpose", "evals");
    made.set("file", new File(["same bytes"], "same.txt"));
    return made;
  };
  const first = await world.send("POST", "/v1/files", { body: form(), headers: { "x-stainless-retry-count": "0" } });
  const retry = await world.send("POST", "/v1/files", { body: form(), headers: { "x-stainless-retry-count": "1" } });
  expect(retry.json.id).toBe(first.json.id);
});

test("our own API starts a run with every value by its name, strictly", async () => {
  const { json } = await world.send("POST", "/api/runs", {
    body: {
      model: "minilm",
      training_file: file,
      task: "classification",
      method: "head",
      hyperparameters: { num_train_epochs: 2 },
    },
  });
  expect(json).toMatchObject({
    object: "run",
    status: "validating_files",
    family: "encoder",
    task: "classification",
    method: "head",
  });
  const refused = await world.send("POST", "/api/runs", {
    body: {
      model: "minilm",
      training_file: file,
      project_id: "other",
      hyperparameters: { learning_rate: 2, lorar: 1 },
    },
  });
  expect(refused.json.error.faults).toHaveLength(3);
  expect(refused.json.error.faults.map((fault: Json) => fault.path)).toEqual(
    expect.arrayContaining(["project_id", "hyperparameters.learning_rate", "hyperparameters.lorar"]),
  );
  expect((await world.send("POST", `/api/runs/${json.id}/cancel`)).json.status).toBe("cancelled");
  expect((await world.send("POST", `/api/runs/${json.id}/stop`)).status).toBe(409);
  expect((await world.send("GET", "/api/runs?limit=1")).json.data[0].id).toBe(json.id);
});
