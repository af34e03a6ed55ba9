/** The memory a model process is expected to take, from weight files of which only the headers matter. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { emptyProcessBytes, expectedBytes } from "../../src/inference/model-size.js";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "fettle-size-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

function weights(name: string, shapes: Record<string, number[]>, dtype = "F32"): void {
  const entries = Object.entries(shapes).map(([key, shape]) => [key, { dtype, shape, data_offsets: [0, 0] }]);
  const header = Buffer.from(JSON.stringify({ __metadata__: { format: "pt" }, ...Object.fromEntries(entries) }));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  writeFileSync(join(folder, name), Buffer.concat([length, header]));
}
const config = (architecture: string): void =>
  writeFileSync(join(folder, "config.json"), JSON.stringify({ architectures: [architecture], vocab_size: 1000 }));
const embedding = { "model.embed_tokens.weight": [1000, 64] };
const layer = { "model.layers.0.mlp.up_proj.weight": [256, 64], "model.norm.weight": [64] };
const own = 1000 * 64 + 256 * 64 + 64;
const beyondProcess = (): number => (expectedBytes(folder) - emptyProcessBytes) / 4;

describe("memory of a model process", () => {
  it("is all weights in fp32, whatever they are saved in and in how many files", () => {
    config("BertModel");
    weights("model-1.safetensors", embedding, "BF16");
    weights("model-2.safetensors", layer, "BF16");
    expect(beyondProcess()).toBe(own);
  });

  it("holds an output head that shares its weight with the embedding a second time", () => {
    weights("model.safetensors", { ...embedding, ...layer });
    config("LlamaForCausalLM");
    expect(beyondProcess()).toBe(own + 1000 * 64);
    config("T5ForConditionalGeneration");
    expect(beyondProcess()).toBe(own + 1000 * 64);
    weights("model.safetensors", { ...embedding, ...layer, "lm_head.weight": [1000, 64] });
    expect(beyondProcess()).toBe(own + 1000 * 64);
  });

  it("is that of the empty process where the folder is not a model's", () => {
    expect(beyondProcess()).toBe(0);
    config("LlamaForCausalLM");
    writeFileSync(join(folder, "model.safetensors"), Buffer.alloc(8, 0xff));
    expect(beyondProcess()).toBe(0);
    writeFileSync(join(folder, "model.safetensors"), Buffer.from([200, 0, 0, 0, 0, 0, 0, 0, 0x7b]));
    expect(beyondProcess()).toBe(0);
  });
});
