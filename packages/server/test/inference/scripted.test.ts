import { describe, expect, it } from "vitest";
import { ScriptedInference } from "../../src/inference/scripted.js";
import { collect, greedy, inferencePortSuite, never } from "./port-suite.js";

const decoder = { basePath: "/models/decoder", adapterPath: null, family: "decoder", task: "chat" } as const;
const encoder = { basePath: "/models/encoder", adapterPath: null, family: "encoder", task: "embed" } as const;
const classifier = { ...encoder, adapterPath: "/runs/1/artefact", task: "classification" } as const;

describe("scripted inference", () => {
  inferencePortSuite(async () => ({
    inference: new ScriptedInference({ labels: { "/runs/1/artefact": ["ham", "spam"] }, maxQueue: 3 }),
    decoder,
    encoder,
    classifier,
    scorer: { ...encoder, adapterPath: "/runs/2/artefact", task: "regression" },
    maxQueue: 3,
  }));

  it("repeats the last message unless it is told what to answer", async () => {
    const prompt = {
      messages: [
        { role: "system", content: "x" },
        { role: "user", content: "hello there" },
      ],
    };
    expect((await collect(new ScriptedInference().generate(decoder, { ...greedy, prompt }, never()))).text).toBe(
      "echo: hello there",
    );
    const told = new ScriptedInference({ answer: (target) => `from ${target.basePath}` });
    expect((await collect(told.generate(decoder, greedy, never()))).text).toBe("from /models/decoder");
  });
});
