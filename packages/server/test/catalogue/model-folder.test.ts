import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { countParameters, NotAModel, readShape } from "../../src/catalogue/model-folder.js";

const sizes = { hidden_size: 64, num_hidden_layers: 2, vocab_size: 100 };

it.each([
  ["decoder", { ...sizes, model_type: "qwen3", architectures: ["Qwen3ForCausalLM"] }],
  [
    "decoder",
    {
      model_type: "gpt2",
      architectures: ["GPT2LMHeadModel"],
      n_embd: 64,
      n_layer: 2,
      n_positions: 128,
      vocab_size: 100,
    },
  ],
  ["encoder", { ...sizes, model_type: "bert", architectures: ["BertModel"] }],
  ["encoder", { ...sizes, model_type: "eurobert", architectures: ["EuroBertForMaskedLM"] }],
  ["seq2seq", { ...sizes, model_type: "marian", architectures: ["MarianMTModel"] }],
  ["seq2seq", { ...sizes, model_type: "unheard-of", is_encoder_decoder: true }],
  [
    "decoder",
    {
      model_type: "gemma3",
      architectures: ["Gemma3ForCausalLM"],
      text_config: { ...sizes, model_type: "gemma3_text" },
    },
  ],
])("reads a %s from its config", (family, config) => {
  expect(readShape(config, "here")).toMatchObject({ family, hiddenSize: 64, numLayers: 2, vocabSize: 100 });
});

it("refuses what is no language model", () => {
  expect(() =>
    readShape({ ...sizes, model_type: "vit", architectures: ["ViTForImageClassification"] }, "here"),
  ).toThrow(
    "here: Fettle cannot tell the family of vit (ViTForImageClassification): expected a causal, masked or encoder-decoder language model.",
  );
  expect(() => readShape([], "here")).toThrow(NotAModel);
  expect(() => readShape({ model_type: "bert" }, "here")).toThrow("does not tell its hidden size");
});

it("refuses a safetensors file that is cut off", async () => {
  const folder = await mkdtemp(join(tmpdir(), "fettle-header-"));
  const path = join(folder, "model.safetensors");
  await writeFile(path, Buffer.from("ffffffff00000000", "hex"));
  await expect(countParameters(path)).rejects.toThrow("this is no safetensors file, or it is cut off");
  await rm(folder, { recursive: true });
});
