import { mkdir, mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { FolderCatalogue } from "../../src/catalogue/catalogue.js";
import type { FetchProgress } from "../../src/catalogue/fetch.js";
import { bertConfig, writeTinyModel } from "./tiny-model.js";

const root = resolve(import.meta.dirname, "../../../..");
const warnings: string[] = [];
const progress: FetchProgress[] = [];
let home = "";

function open(
  options: { models?: { name: string; path: string }[]; offline?: boolean; python?: string } = {},
): FolderCatalogue {
  return new FolderCatalogue({
    home,
    models: options.models ?? [],
    hub: { offline: options.offline ?? true, token: null },
    bundledPath: join(root, "trainer/src/fettle_trainer/models.json"),
    fetch: {
      python: options.python ?? join(root, ".venv/bin/python"),
      env: { PATH: process.env["PATH"], PYTHONPATH: join(root, "trainer/src"), FETTLE_CACHE: join(home, "cache") },
    },
    log: { info: () => undefined, warn: (_fields, message) => warnings.push(message) },
    now: () => Date.now(),
    onProgress: (line) => progress.push(line),
  });
}

beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "fettle-catalogue-"));
  warnings.length = 0;
  progress.length = 0;
});
afterEach(() => rm(home, { recursive: true, force: true }));

describe("catalogue", () => {
  it("lists bundled models that are not here yet, with their sizes", async () => {
    const models = await open().list();
    expect(models.map(({ name, family, path, source }) => ({ name, family, path, source }))).toEqual([
      { name: "minilm-l6-v2", family: "encoder", path: null, source: "bundled" },
      { name: "smollm2-135m-instruct", family: "decoder", path: null, source: "bundled" },
    ]);
    expect(models[1]).toMatchObject({
      numParameters: 134_515_008,
      hiddenSize: 576,
      numLayers: 30,
      vocabSize: 49_152,
      contextLength: 8192,
      licence: "Apache-2.0",
    });
  });

  it("finds folders of fettle.yaml and of FETTLE_HOME/models, and counts their parameters", async () => {
    const elsewhere = join(home, "elsewhere");
    await writeTinyModel(elsewhere);
    await writeTinyModel(join(home, "models", "acme--tiny"), {
      model_type: "t5",
      architectures: ["T5ForConditionalGeneration"],
      d_model: 8,
      num_layers: 2,
      vocab_size: 20,
    });
    const catalogue = open({ models: [{ name: "mine", path: elsewhere }] });
    expect(await catalogue.find("mine")).toMatchObject({
      family: "encoder",
      numParameters: 44,
      contextLength: 32,
      source: "local",
      path: elsewhere,
    });
    expect(await catalogue.find("acme/tiny")).toMatchObject({
      family: "seq2seq",
      hiddenSize: 8,
      numLayers: 2,
      contextLength: 512,
      source: "hub",
    });
    expect((await catalogue.list()).map((model) => model.name)).toEqual([
      "mine",
      "minilm-l6-v2",
      "smollm2-135m-instruct",
      "acme/tiny",
    ]);
  });

  it("reads a folder once, and again when its config or its files have changed", async () => {
    const folder = join(home, "elsewhere");
    await writeTinyModel(folder);
    const catalogue = open({ models: [{ name: "mine", path: folder }] });
    const before = await catalogue.find("mine");
    // In place: neither the folder nor its config shows it, so a second reading would.
    await writeFile(join(folder, "model.safetensors"), "no header");
    expect(await catalogue.find("mine")).toEqual(before);

    await writeTinyModel(join(home, "other"));
    await rename(join(home, "other", "model.safetensors"), join(folder, "model.safetensors"));
    await writeFile(join(folder, "config.json"), JSON.stringify({ ...bertConfig, max_position_embeddings: 64 }));
    expect(await catalogue.find("mine")).toMatchObject({ contextLength: 64, numParameters: 44 });

    await rename(join(folder, "model.safetensors"), join(home, "away"));
    await expect(catalogue.find("mine")).rejects.toMatchObject({ code: "model_unavailable" });
    await rename(join(home, "away"), join(folder, "model.safetensors"));
    expect(await catalogue.find("mine")).toMatchObject({ numParameters: 44 });
    await rm(folder, { recursive: true });
    await expect(catalogue.find("mine")).rejects.toMatchObject({ code: "model_unavailable" });
  });

  it("says why a folder is no model when it is asked for, and leaves it out of the list with a warning", async () => {
    const folder = join(home, "models", "broken");
    await mkdir(folder, { recursive: true });
    await writeFile(
      join(folder, "config.json"),
      JSON.stringify({ model_type: "bert", hidden_size: 4, num_hidden_layers: 1, vocab_size: 10 }),
    );
    await writeFile(join(folder, "pytorch_model.bin"), "pickle");
    const catalogue = open();
    await expect(catalogue.find("broken")).rejects.toMatchObject({
      code: "model_unavailable",
      message: `The model "broken" cannot be used. ${folder}: there are no *.safetensors. Pickled weights (*.bin, *.pt) are never loaded: save the model with safetensors.`,
    });
    expect((await catalogue.list()).map((model) => model.name)).not.toContain("broken");
    expect(warnings.join()).toContain("there are no *.safetensors");
  });

  it("makes a bundled model ready through the trainer, once for callers at the same time", async () => {
    // The cache already holds it, so that nothing is downloaded.
    await writeTinyModel(join(home, "cache", "models", "minilm-l6-v2-b9a0018dff09"));
    const catalogue = open();
    const [first, second] = await Promise.all([catalogue.prepare("minilm-l6-v2"), catalogue.prepare("minilm-l6-v2")]);
    expect(second).toBe(first);
    expect(first).toMatchObject({
      name: "minilm-l6-v2",
      path: join(home, "models", "minilm-l6-v2"),
      source: "bundled",
      licence: "Apache-2.0",
      numParameters: 44,
    });
    expect(progress.map((line) => line.message)).toEqual([
      "minilm-l6-v2 is in the cache",
      `placing minilm-l6-v2 in ${join(home, "models", "minilm-l6-v2")}`,
    ]);
    expect((await catalogue.find("minilm-l6-v2"))?.path).toBe(first.path);
  });

  it("refuses unknown names with the nearest one, and hub names while offline with the folder to use", async () => {
    const catalogue = open();
    expect(await catalogue.find("minilm-l6")).toBeNull();
    await expect(catalogue.prepare("minilm-l6")).rejects.toMatchObject({
      code: "model_not_found",
      message: 'No base model is named "minilm-l6". Did you mean "minilm-l6-v2"?',
    });
    expect(await catalogue.find("Qwen/Qwen3-0.6B")).toBeNull();
    await expect(catalogue.prepare("Qwen/Qwen3-0.6B")).rejects.toMatchObject({
      code: "model_not_found",
      message: `No base model is named "Qwen/Qwen3-0.6B". HF_HUB_OFFLINE forbids to ask the hub: place the model's folder in ${home}/models/Qwen--Qwen3-0.6B.`,
    });
  });

  it("names the interpreter when it cannot be started", async () => {
    await expect(open({ python: join(home, "no-python") }).prepare("minilm-l6-v2")).rejects.toMatchObject({
      code: "python_missing",
    });
  });
});
