/** Rare classes and labels: weighed or drawn, and not both. */
import type { Hyperparameters } from "@fettle/contract";
import { describe, expect, it } from "vitest";
import { resolveHyperparameters, type Situation } from "../../src/domain/hyperparameters.js";

const situation: Situation = {
  family: "encoder",
  task: "classification",
  method: "full",
  numParameters: 22e6,
  contextLength: 512,
  numLayers: 6,
  numRows: 92,
  longestRow: 40,
  hasValidation: true,
  adapter: null,
  labels: { a: 90, b: 2 },
  scores: null,
  taught: false,
  rowsThatFit: () => 64,
};

describe("rare classes and labels", () => {
  it("are weighed when they are classes, and drawn when that is asked for", () => {
    expect(resolveHyperparameters({}, situation)).toMatchObject({
      value: { values: { class_weights: "balanced", sampling: "shuffled" } },
    });
    expect(resolveHyperparameters({ sampling: "balanced" }, situation)).toMatchObject({
      value: {
        values: { class_weights: "none", sampling: "balanced" },
        choices: expect.arrayContaining([
          { name: "class_weights", value: "none", reason: "every class is drawn as often already" },
        ]),
      },
    });
  });

  it("are weighed as labels when that is asked for", () => {
    const several: Situation = { ...situation, task: "multilabel_classification" };
    expect(resolveHyperparameters({}, several)).toMatchObject({ value: { values: { class_weights: "none" } } });
    const reasons = (given: Situation) => {
      const found = resolveHyperparameters({}, given);
      return found.ok ? found.value.choices.find(({ name }) => name === "class_weights")?.reason : "";
    };
    expect(reasons(several)).toMatch(/^"b" is on 2 of 92 rows: "balanced" would find it more often, but weights move/);
    expect(reasons({ ...several, labels: { a: 90, b: 40 } })).toMatch(/^weights move a label's probability/);
    expect(resolveHyperparameters({ class_weights: "balanced" }, several)).toMatchObject({
      value: { values: { class_weights: "balanced", sampling: "shuffled" } },
    });
  });

  it.each<[string, Partial<Hyperparameters>, Situation["task"], string]>([
    ["class_weights", { class_weights: "balanced" }, "chat", 'the task "chat" has no classes'],
    ["sampling", { sampling: "balanced" }, "chat", 'the rows of the task "chat" are not of one class each'],
    ["sampling", { sampling: "balanced" }, "multilabel_classification", 'Use class_weights "balanced"'],
    [
      "class_weights",
      { sampling: "balanced", class_weights: "balanced" },
      "classification",
      "a rare class would count twice as much as it should",
    ],
  ])("are not balanced where that cannot be: %s of %j for %s", (name, given, task, message) => {
    expect(resolveHyperparameters(given, { ...situation, task })).toMatchObject({
      ok: false,
      refusal: {
        code: "value_out_of_range",
        param: `hyperparameters.${name}`,
        message: expect.stringContaining(message),
      },
    });
  });
});
