/**
 * Base models by name, from four places; the first that has the name wins:
 *   fettle.yaml `models:`         folders anywhere on this disk
 *   bundled                       models.json; made ready in FETTLE_HOME/models on first use
 *   FETTLE_HOME/models/<name>     folders placed there by hand; `org--name` is the hub's org/name
 *   the Hugging Face hub          org/name, asked only when the hub is allowed
 */
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import type { BaseModel, Catalogue, Log } from "../app/ports.js";
import { AppError } from "../domain/error.js";
import { suggestion } from "../domain/nearest.js";
import { type BundledModel, readBundled } from "./bundled.js";
import { describeModel, type FetchCommand, type FetchProgress, fetchModel } from "./fetch.js";
import { type FolderFacts, NotAModel, readModelFolder, readShape, stampOf } from "./model-folder.js";

export interface CatalogueOptions {
  /** FETTLE_HOME, absolute. */
  home: string;
  /** `models:` of fettle.yaml; paths are absolute. */
  models: readonly { name: string; path: string }[];
  hub: { offline: boolean; token: string | null };
  /** models.json of the trainer. */
  bundledPath: string;
  fetch: FetchCommand;
  log: Pick<Log, "info" | "warn">;
  /** Milliseconds since 1970. */
  now: () => number;
  onProgress?: (progress: FetchProgress) => void;
}

/** How long a hub's "no such model" is believed. */
const missingMs = 60_000;
const hubName = /^[A-Za-z0-9][\w.-]{0,95}\/[A-Za-z0-9][\w.-]{0,95}$/;

export class FolderCatalogue implements Catalogue {
  private readonly bundled: Promise<BundledModel[]>;
  private readonly preparing = new Map<string, Promise<BaseModel>>();
  /** What folders held when they were last read, by path. */
  private readonly read = new Map<string, { stamp: string; facts: FolderFacts }>();
  private readonly described = new Map<string, { model: BaseModel | null; at: number }>();

  constructor(private readonly options: CatalogueOptions) {
    this.bundled = readBundled(options.bundledPath);
    this.bundled.catch(() => undefined); // told by the first call that needs it
  }

  /** Everything that is here or bundled; never asks the hub. A folder that is no model is logged and left out. */
  async list(): Promise<BaseModel[]> {
    const found = new Map<string, BaseModel>();
    const add = (model: BaseModel | null): void => {
      if (model !== null && !found.has(model.name)) found.set(model.name, model);
    };
    for (const { name, path } of this.options.models) add(await this.readable(name, path));
    for (const model of await this.bundled) add(await this.fromBundle(model));
    for (const folder of await this.placedFolders())
      add(await this.readable(nameOfFolder(folder), join(this.modelsDir, folder)));
    return [...found.values()];
  }

  /** Throws `model_unavailable` when a folder of this name is there but holds no usable model. */
  async find(name: string): Promise<BaseModel | null> {
    const configured = this.options.models.find((model) => model.name === name);
    if (configured !== undefined) return this.fromFolder(name, configured.path);
    const bundled = (await this.bundled).find((model) => model.name === name);
    if (bundled !== undefined) return this.fromBundle(bundled);
    const folder = (await this.placedFolders()).find((candidate) => nameOfFolder(candidate) === name);
    if (folder !== undefined) return this.fromFolder(name, join(this.modelsDir, folder));
    return hubName.test(name) && !this.options.hub.offline ? this.onHub(name) : null;
  }

  /** Callers of the same name share one download. */
  prepare(name: string): Promise<BaseModel> {
    const running = this.preparing.get(name);
    if (running !== undefined) return running;
    const started = this.makeReady(name).finally(() => this.preparing.delete(name));
    this.preparing.set(name, started);
    return started;
  }

  private async makeReady(name: string): Promise<BaseModel> {
    const known = await this.find(name);
    if (known === null) throw await this.unknown(name);
    if (known.path !== null) return known;
    const dest = join(this.modelsDir, name.replace("/", "--"));
    this.options.log.info({ model: name }, "fetching a base model");
    await fetchModel(this.command, { name, dest, onProgress: this.options.onProgress ?? (() => undefined) });
    const model = await this.fromFolder(name, dest);
    return { ...model, licence: known.licence, source: known.source };
  }

  private async unknown(name: string): Promise<AppError> {
    const hint =
      hubName.test(name) && this.options.hub.offline
        ? ` HF_HUB_OFFLINE forbids to ask the hub: place the model's folder in ${this.modelsDir}/${name.replace("/", "--")}.`
        : suggestion(
            name,
            (await this.list()).map((model) => model.name),
          );
    return new AppError("model_not_found", `No base model is named "${name}".${hint}`, { param: "model" });
  }

  private get modelsDir(): string {
    return join(this.options.home, "models");
  }

  private get command(): FetchCommand {
    const { fetch, hub } = this.options;
    return {
      ...fetch,
      env: {
        ...fetch.env,
        HF_HUB_OFFLINE: hub.offline ? "1" : "0",
        ...(hub.token === null ? {} : { HF_TOKEN: hub.token }),
      },
    };
  }

  /** Folders that begin with a dot are downloads under way. */
  private async placedFolders(): Promise<string[]> {
    const entries = await readdir(this.modelsDir, { withFileTypes: true }).catch(() => []);
    return entries
      .filter((entry) => !entry.name.startsWith(".") && (entry.isDirectory() || entry.isSymbolicLink()))
      .map((entry) => entry.name)
      .sort();
  }

  private async fromBundle(model: BundledModel): Promise<BaseModel> {
    const folder = join(this.modelsDir, model.name);
    const here = (await this.placedFolders()).includes(model.name);
    return {
      name: model.name,
      family: model.family,
      path: here ? folder : null,
      numParameters: model.num_parameters,
      hiddenSize: model.hidden_size,
      numLayers: model.num_layers,
      vocabSize: model.vocab_size,
      contextLength: model.context_length,
      licence: model.licence,
      source: "bundled",
    };
  }

  private async readable(name: string, path: string): Promise<BaseModel | null> {
    try {
      return await this.fromFolder(name, path);
    } catch (error) {
      if (!(error instanceof AppError)) throw error;
      this.options.log.warn({ model: name, path }, error.message);
      return null;
    }
  }

  /** Throws AppError `model_unavailable` when the folder is no model. */
  private async fromFolder(name: string, path: string): Promise<BaseModel> {
    try {
      const facts = await this.factsOf(path);
      return { name, path, ...facts, licence: "unknown", source: name.includes("/") ? "hub" : "local" };
    } catch (cause) {
      if (!(cause instanceof NotAModel)) throw cause;
      throw new AppError("model_unavailable", `The model "${name}" cannot be used. ${cause.message}`, {
        param: "model",
        cause,
      });
    }
  }

  /** Read again once the folder or its config changed; a folder that is no model is read each time. */
  private async factsOf(path: string): Promise<FolderFacts> {
    const stamp = await stampOf(path);
    const known = this.read.get(path);
    if (known !== undefined && known.stamp === stamp) return known.facts;
    const facts = await readModelFolder(path);
    // Taken before the reading: what changed meanwhile has another stamp.
    if (stamp !== null) this.read.set(path, { stamp, facts });
    return facts;
  }

  private async onHub(name: string): Promise<BaseModel | null> {
    const known = this.described.get(name);
    if (known !== undefined && (known.model !== null || this.options.now() - known.at < missingMs)) return known.model;
    const model = await this.askHub(name);
    this.described.set(name, { model, at: this.options.now() });
    return model;
  }

  /** Null when the hub has no such model, or cannot be reached: then the name is unknown here too, and the log says why. */
  private async askHub(name: string): Promise<BaseModel | null> {
    try {
      const { config, num_parameters, licence } = await describeModel(this.command, name);
      const shape = readShape(config, `config.json of ${name} on the hub`);
      return {
        name,
        path: null,
        ...shape,
        numParameters: num_parameters ?? 0,
        licence: licence ?? "unknown",
        source: "hub",
      };
    } catch (error) {
      if (error instanceof NotAModel) throw new AppError("model_unavailable", error.message, { param: "model" });
      if (!(error instanceof AppError)) throw error;
      this.options.log.warn({ model: name }, error.message);
      return null;
    }
  }
}

const nameOfFolder = (folder: string): string => folder.replace("--", "/");
