import fc from "fast-check";
import {
  familySchema,
  hyperparametersSchema,
  type Method,
  methodSchema,
  rowKindSchema,
  type Task,
  taskSchema,
} from "@fettle/contract";
import { describe, expect, it } from "vitest";
import { chooseWay, matrix, type Wanted } from "../../src/domain/compatibility.js";
import { type Load, memoryBytes, operationsOf } from "../../src/domain/estimate.js";
import { resolveHyperparameters, type Situation } from "../../src/domain/hyperparameters.js";
import { labelSet } from "../../src/domain/labels.js";
import { editDistance, nearestName } from "../../src/domain/nearest.js";

const smollm = { numParameters: 134_515_008, hiddenSize: 576, numLayers: 30, vocabSize: 49_152 };

describe("nearestName", () => {
  it.each([
    ["learning_rat", "learning_rate"],
    ["LearningRate", "learning_rate"],
    ["smollm2-135m", "smollm2-135m-instruct"],
    ["minilm", "minilm-l6-v2"],
    ["gpt-4o", null],
    ["", null],
  ])("%s -> %s", (name, expected) => {
    expect(nearestName(name, ["learning_rate", "lora_r", "smollm2-135m-instruct", "minilm-l6-v2"])).toBe(expected);
  });

  it("editDistance is a distance", () =>
    fc.assert(
      fc.property(fc.string({ maxLength: 8 }), fc.string({ maxLength: 8 }), (a, b) => {
        expect(editDistance(a, b)).toBe(editDistance(b, a));
        expect(editDistance(a, b) === 0).toBe(a === b);
        expect(editDistance(a, b)).toBeLessThanOrEqual(Math.max(a.length, b.length));
      }),
    ));
});

const wanted: Wanted = {
  model: "m",
  family: "decoder",
  numParameters: 135e6,
  rows: "chat",
  task: null,
  method: null,
  tunedBy: null,
  tunedFor: null,
  fourBitsLack: null,
};

describe("chooseWay", () => {
  it.each<[Partial<Wanted>, string, string]>([
    [{}, "chat", "lora"],
    [{ rows: "pair" }, "chat", "lora"],
    [{ rows: "classification" }, "classification", "lora"],
    [{ family: "encoder", rows: "classification", numParameters: 22e6 }, "classification", "full"],
    [{ family: "encoder", rows: "classification", numParameters: 1e9 }, "classification", "lora"],
    [{ family: "encoder", rows: "classification", method: "head" }, "classification", "head"],
    [{ family: "seq2seq", rows: "pair" }, "seq2seq", "full"],
    [{ method: "full" }, "chat", "full"],
    [{ rows: "multilabel" }, "multilabel_classification", "lora"],
    [{ rows: "score", method: "head" }, "regression", "head"],
    [{ rows: "ranking" }, "ranking", "lora"],
    [{ family: "encoder", rows: "entities", numParameters: 22e6 }, "token_classification", "full"],
    [{ family: "encoder", rows: "answers", numParameters: 22e6 }, "question_answering", "full"],
    [{ family: "encoder", rows: "similarity", numParameters: 22e6 }, "embedding", "full"],
    [{ method: "dora" }, "chat", "dora"],
    [{ method: "freeze" }, "chat", "freeze"],
    [{ family: "seq2seq", rows: "pair", method: "rslora" }, "seq2seq", "rslora"],
    [{ tunedBy: "dora" }, "chat", "dora"],
    [{ method: "prefix" }, "chat", "prefix"],
    [{ family: "encoder", rows: "classification", method: "ia3" }, "classification", "ia3"],
    [{ family: "encoder", rows: "classification", numParameters: 22e6, tunedBy: "lora" }, "classification", "lora"],
    [{ rows: "preference", tunedBy: "lora", tunedFor: "chat" }, "preference", "lora"],
    [{ method: "qlora" }, "chat", "qlora"],
    [{ family: "encoder", rows: "entities", method: "qlora" }, "token_classification", "qlora"],
    [{ tunedBy: "qlora", tunedFor: "chat" }, "chat", "qlora"],
    [{ tunedBy: "qlora", tunedFor: "chat", method: "lora", fourBitsLack: "there is no GPU" }, "chat", "lora"],
    [{ tunedBy: "lora", tunedFor: "chat", method: "qlora" }, "chat", "qlora"],
    [{ tunedBy: "qlora", tunedFor: "chat", fourBitsLack: "there is no GPU" }, "chat", "lora"],
    [{ rows: "chat", tunedBy: "lora", tunedFor: "pretraining", method: "full" }, "chat", "full"],
    [{ rows: "classification", tunedBy: "lora", tunedFor: "chat" }, "classification", "full"],
  ])("%j -> %s by %s", (change, task, method) => {
    expect(chooseWay({ ...wanted, ...change })).toMatchObject({ ok: true, value: { task, method } });
  });
});

describe("chooseWay refuses", () => {
  it.each<[Partial<Wanted>, string]>([
    [
      { family: "encoder" },
      "m is an encoder, which cannot learn from chat rows (messages). Use a decoder for these rows, or give a file of classification rows (text and label) or rows of several labels (text and labels) or scored texts (text and score), among others.",
    ],
    [
      { family: "seq2seq", rows: "classification" },
      "m is an encoder-decoder, which cannot learn from classification rows (text and label). Use a decoder or an encoder for these rows, or give a file of pairs (prompt and completion).",
    ],
    [
      { task: "classification" },
      'The task "classification" cannot be done by m (a decoder) with chat rows (messages). Use the task "chat", or leave it out.',
    ],
    [
      { method: "head" },
      'The method "head" cannot do the task "chat" with m. A head is what is put on top for classification; chat uses the model\'s own output. Use the method "lora", "rslora", "dora", "ia3", "qlora", "full", "freeze", "prompt" or "prefix".',
    ],
    [
      { rows: "classification", method: "prompt" },
      'The method "prompt" cannot do the task "classification" with m. Virtual tokens are read before a text that a decoder goes on with. Use the method "lora", "rslora", "dora", "ia3", "qlora", "full", "freeze" or "head".',
    ],
    [
      { method: "qlora", fourBitsLack: "PyTorch sees no GPU here" },
      'The method "qlora" keeps the base in 4 bits, by an NVIDIA GPU and the package bitsandbytes, but PyTorch sees no GPU here. Use the method "lora": it trains the same adapter over the base as it is.',
    ],
    [
      { method: "qlora", tunedBy: "rslora" },
      'm is an adapter made with the method "rslora": it can only be gone on from with the same. Use "rslora", or begin from its base model.',
    ],
    [
      { method: "lora", tunedBy: "dora" },
      'm is an adapter made with the method "dora": it can only be gone on from with the same. Use "dora", or begin from its base model.',
    ],
    [
      { rows: "classification", method: "lora", tunedBy: "lora", tunedFor: "chat" },
      'm is an adapter without the output that the task "classification" needs, and an adapter that is gone on from keeps its parts. Use the method "full", which folds it into its base first, or begin from its base model.',
    ],
    [
      { rows: "classification", tunedBy: "prefix", tunedFor: "chat" },
      'm is virtual tokens before a text, and the task "classification" needs a new output. Begin from its base model.',
    ],
    [
      { tunedBy: "full", tunedFor: "classification" },
      'm was tuned for the task "classification" and has no output for "chat". Begin from its base model, or give a file for "classification".',
    ],
  ])("%j is refused", (change, message) => {
    expect(chooseWay({ ...wanted, ...change })).toMatchObject({
      ok: false,
      refusal: { code: "incompatible_method", message },
    });
  });
});

describe("the matrix", () => {
  const families = familySchema.options;
  const every = families.flatMap((family) =>
    rowKindSchema.options.flatMap((rows) =>
      taskSchema.options.flatMap((task) => methodSchema.options.map((method) => ({ family, rows, task, method }))),
    ),
  );
  const choose = (one: Partial<Wanted>) =>
    chooseWay({
      model: "m",
      family: "decoder",
      numParameters: 1e9,
      rows: "chat",
      task: null,
      method: null,
      tunedFor: null,
      fourBitsLack: null,
      tunedBy: null,
      ...one,
    });
  it("says what is accepted, all of it and nothing else", () => {
    const accepted = every
      .filter((one) => choose(one).ok)
      .map(({ family, task, method }) => `${family} ${task} ${method}`);
    const stated = matrix.flatMap(({ family, task, methods }) =>
      methods.map((method) => `${family} ${task} ${method}`),
    );
    expect(new Set(accepted)).toEqual(new Set(stated));
  });

  it("each refusal names something that works instead, also on a machine without a GPU", () => {
    const lacking = every.map((one) => ({ ...one, fourBitsLack: "PyTorch sees no GPU here" }));
    expect(lacking.filter((one) => one.method === "qlora" && choose(one).ok)).toEqual([]);
    for (const one of [...every, ...lacking]) {
      const chosen = choose(one);
      if (chosen.ok) continue;
      const { message } = chosen.refusal;
      const named = [...message.slice(message.indexOf(" Use ")).matchAll(/"(\w+)"/g)].map(([, name]) => name);
      const works = named.filter(
        (name) =>
          choose({ ...one, method: name as Method }).ok || choose({ ...one, method: null, task: name as Task }).ok,
      );
      expect(works.length > 0 || / (Use|give) .*(a|an) (decoder|encoder|file of)/.test(message), message).toBe(true);
    }
  });
});

describe("labelSet", () => {
  const training = { spam: 20, ham: 30 };
  it("orders by number when all are numbers, else by character codes", () => {
    expect(
      labelSet({ training: { "10": 9, "9": 9, "2": 9 }, validation: null, inherited: null, task: "classification" }),
    ).toMatchObject({
      value: { labels: ["2", "9", "10"], warnings: [] },
    });
    expect(labelSet({ training, validation: { ham: 1 }, inherited: null, task: "classification" })).toMatchObject({
      value: { labels: ["ham", "spam"] },
    });
  });

  it("warns of rare classes", () => {
    expect(
      labelSet({ training: { ...training, rare: 2 }, validation: null, inherited: null, task: "classification" }),
    ).toMatchObject({
      value: {
        warnings: [
          '1 of 3 classes have fewer than 8 rows and will be learnt badly: "rare" (2). Add rows, or merge classes.',
        ],
      },
    });
  });

  it.each([
    [
      { training: { spam: 20 }, validation: null, inherited: null },
      'The training file has only the label "spam": expected at least two classes to tell apart. Add rows of another class.',
    ],
    [
      { training, validation: { Spam: 1 }, inherited: null },
      'The validation file has the label "Spam", which the training file does not have: expected one of "ham", "spam". Did you mean "spam"?',
    ],
    [
      { training: { spam: 9, other: 9 }, validation: null, inherited: ["ham", "spam"] },
      'The training file has the label "other", which the tuned model does not know: expected only "ham", "spam". Begin from the base model, or rename the label.',
    ],
  ])("%j is refused", (input, message) => {
    expect(labelSet({ ...input, task: "classification" })).toMatchObject({ ok: false, refusal: { message } });
  });
});

describe("resolveHyperparameters", () => {
  const situation: Situation = {
    family: "decoder",
    task: "chat",
    method: "lora",
    numParameters: 135e6,
    contextLength: 8192,
    numLayers: 30,
    numRows: 600,
    longestRow: 200,
    hasValidation: true,
    adapter: null,
    labels: {},
    scores: null,
    taught: false,
    rowsThatFit: () => 64,
  };

  const chosen = (change: Partial<Situation>, name: string) => {
    const resolved = resolveHyperparameters({}, { ...situation, ...change });
    return resolved.ok ? resolved.value.choices.find((choice) => choice.name === name) : resolved;
  };

  it.each([
    [
      { ham: 110, spam: 10 },
      "balanced",
      '"ham" has 110 rows, "spam" 10: without weights the rare class would hardly be learnt',
    ],
    [{ ham: 100, spam: 10 }, "none", '"ham" has 100 rows, "spam" 10: at most 10 to 1 apart'],
  ])("weighs the classes of %j: %s", (labels, value, reason) => {
    expect(chosen({ task: "classification", labels }, "class_weights")).toMatchObject({ value, reason });
  });

  it("standardises scores", () => {
    const change: Partial<Situation> = { task: "regression", scores: { mean: 50, std: 8 } };
    expect(chosen(change, "target_mean")).toMatchObject({ value: 50 });
    expect(chosen(change, "target_std")).toMatchObject({ value: 8 });
    expect(chosen({}, "target_std")).toMatchObject({ value: 1, reason: "not used by this method" });
  });

  it("chooses everything, each with a reason", () => {
    const resolved = resolveHyperparameters({}, situation);
    expect(resolved).toMatchObject({
      ok: true,
      value: {
        values: {
          num_train_epochs: 3,
          per_device_train_batch_size: 8,
          gradient_accumulation_steps: 1,
          learning_rate: 5e-4,
          max_length: 320,
          lr_scheduler_type: "cosine",
        },
      },
    });
    if (!resolved.ok) throw new Error("refused");
    expect(resolved.value.choices.map((choice) => choice.name).sort()).toEqual(
      Object.keys(hyperparametersSchema.shape).sort(),
    );
    expect(resolved.value.choices.every((choice) => choice.reason.length > 3)).toBe(true);
  });

  it.each([
    [10, 10],
    [20, 5],
    [33, 3],
    [100, 3],
    [8333, 3],
    [8334, 2],
    [30_000, 1],
  ])("follows the published epoch rule: %i rows, %i epochs", (numRows, epochs) => {
    expect(resolveHyperparameters({}, { ...situation, numRows })).toMatchObject({
      value: { values: { num_train_epochs: epochs } },
    });
  });

  it("splits a step that does not fit into parts", () => {
    const values = { per_device_train_batch_size: 2, gradient_accumulation_steps: 4 };
    expect(resolveHyperparameters({}, { ...situation, rowsThatFit: () => 3 })).toMatchObject({ value: { values } });
  });

  it("keeps what is given and scales the learning rate", () => {
    const resolved = resolveHyperparameters({ num_train_epochs: 7, learning_rate_multiplier: 2 }, situation);
    expect(resolved).toMatchObject({ value: { values: { num_train_epochs: 7, learning_rate: 1e-3 } } });
  });

  it.each([
    [
      { learning_rate: 2 },
      "hyperparameters.learning_rate",
      "learning_rate is 2: expected a number above 0, at most 0.1. Typical: 0.0002 for lora, 0.00002 to 0.00005 for full, 0.001 for head.",
    ],
    [
      { num_train_epochs: 0 },
      "hyperparameters.num_train_epochs",
      "num_train_epochs is 0: expected a whole number from 1 to 50. Typical: 1 to 5.",
    ],
    [
      { max_length: 9000 },
      "hyperparameters.max_length",
      "max_length is 9000, but the model reads at most 8192 tokens. Use at most 8192, or leave it out.",
    ],
    [
      { trainable_layers: 0 },
      "hyperparameters.trainable_layers",
      "trainable_layers is 0: expected a whole number from 1 to 1000. Typical: 1 to 4.",
    ],
    [
      { learning_rate_multiplier: 1000 },
      "hyperparameters.learning_rate_multiplier",
      "learning_rate_multiplier 1000 makes the learning rate 0.5: expected at most 0.1. Typical: 0.0002 for lora, 0.00002 to 0.00005 for full, 0.001 for head.",
    ],
  ])("%j is refused", (given, param, message) => {
    expect(resolveHyperparameters(given, situation)).toMatchObject({
      ok: false,
      refusal: { code: "value_out_of_range", param, message },
    });
  });

  it("a freeze that leaves nothing frozen is refused", () => {
    const frozen = { ...situation, method: "freeze" as const };
    expect(resolveHyperparameters({}, frozen)).toMatchObject({ ok: true, value: { values: { trainable_layers: 2 } } });
    expect(resolveHyperparameters({ trainable_layers: 30 }, frozen)).toMatchObject({
      ok: false,
      refusal: { code: "value_out_of_range", param: "hyperparameters.trainable_layers" },
    });
  });

  it("always ends within the bounds of the contract", () =>
    fc.assert(
      fc.property(
        fc.record({
          family: fc.constantFrom("decoder" as const, "encoder" as const, "seq2seq" as const),
          task: fc.constantFrom(...taskSchema.options),
          method: fc.constantFrom(...methodSchema.options),
          numParameters: fc.integer({ min: 1, max: 1e12 }),
          contextLength: fc.integer({ min: 8, max: 131072 }),
          numLayers: fc.integer({ min: 2, max: 200 }),
          numRows: fc.integer({ min: 1, max: 1e7 }),
          longestRow: fc.integer({ min: 0, max: 1e7 }),
          hasValidation: fc.boolean(),
          taught: fc.boolean(),
          labels: fc.dictionary(fc.string(), fc.integer({ min: 0, max: 1e6 })),
          scores: fc.option(
            fc.record({ mean: fc.constantFrom(-1e30, 0, 1e30), std: fc.constantFrom(1e-300, 1, 1e30) }),
          ),
          fit: fc.integer({ min: 0, max: 1e6 }),
        }),
        ({ fit, ...rest }) => {
          const resolved = resolveHyperparameters({}, { ...rest, adapter: null, rowsThatFit: () => fit });
          expect(resolved.ok && hyperparametersSchema.safeParse(resolved.value.values).success).toBe(true);
        },
      ),
    ));
});

describe("estimates", () => {
  const load: Load = { family: "decoder", method: "lora", batchSize: 4, length: 512, loraR: 16, generates: true };
  it("grows with everything that costs memory", () => {
    const base = memoryBytes(smollm, load);
    expect(memoryBytes(smollm, { ...load, batchSize: 8 })).toBeGreaterThan(base);
    expect(memoryBytes(smollm, { ...load, length: 1024 })).toBeGreaterThan(base);
    expect(memoryBytes(smollm, { ...load, method: "full" })).toBeGreaterThan(base);
    expect(memoryBytes(smollm, { ...load, generates: false })).toBeLessThan(base);
    expect(base - memoryBytes(smollm, { ...load, method: "qlora" })).toBe(smollm.numParameters * 2);
    expect(memoryBytes(smollm, { ...load, method: "head", generates: false })).toBeLessThan(base);
  });

  it("counts the trained layers alone for freeze", () => {
    const freeze = (trainableLayers: number): number =>
      memoryBytes(smollm, { ...load, method: "freeze", trainableLayers });
    expect(freeze(2)).toBeGreaterThan(freeze(1));
    expect(freeze(29)).toBeLessThan(memoryBytes(smollm, { ...load, method: "full" }));
    const work = { tokens: 1000, epochs: 1, family: "decoder" as const };
    const operations = operationsOf(smollm, { ...work, method: "freeze", trainableLayers: 15 });
    expect(operations).toBe(operationsOf(smollm, { ...work, method: "lora" }));
  });

  it("counts 16 bytes a parameter for full and 4 for the frozen body of an adapter", () => {
    const tiny = { ...load, batchSize: 1, length: 1, generates: false };
    expect(memoryBytes(smollm, { ...tiny, method: "full" }) - 0.7e9).toBeCloseTo(smollm.numParameters * 16, -7);
    expect(memoryBytes(smollm, tiny) - 0.7e9).toBeLessThan(smollm.numParameters * 5);
  });
});
