/**
 * The composition root: the only file that knows every adapter.
 *
 * Start: configuration, home, port (a port in use costs nothing), then database and Python at the same time, then
 * background work and dispatcher; from `open` on the API answers. End: the same backwards; trainers go on.
 */
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { AppDeps } from "./app/deps.js";
import { type Dispatcher, startDispatcher } from "./app/dispatcher.js";
import { forgetExports } from "./app/export-model.js";
import { startSweeper } from "./app/sweeper.js";
import type { Inference, Log, Tuner } from "./app/ports.js";
import { processFile } from "./app/process-file.js";
import { validateRun } from "./app/validate-run.js";
import { startBackground } from "./background/dbos.js";
import { localBlobs } from "./blobs/local.js";
import { removePartials } from "./blobs/partial.js";
import { FolderCatalogue } from "./catalogue/catalogue.js";
import { type Config, loadConfig } from "./config.js";
import { createApp } from "./http/app.js";
import { listen } from "./http/listen.js";
import { InferencePool } from "./inference/pool.js";
import { dataReader } from "./ingest/read-data.js";
import { localExporter } from "./runner/exporter.js";
import { trainerEnvironment } from "./runner/environment.js";
import { type LocalRunner, localRunner } from "./runner/local.js";
import { ownerIsDead, thisOwner } from "./runner/process-identity.js";
import { localTuner } from "./runner/tuner.js";
import { ensureAdminKey } from "./startup/admin-key.js";
import { sharesOf, type Shares } from "./startup/machine.js";
import { measureProcessor, type Processor, processorName, unmeasured } from "./startup/processor.js";
import { checkPython } from "./startup/python.js";
import { fourBitsOf } from "./startup/four-bits.js";
import { claimHome } from "./startup/server-file.js";
import { openStore } from "./store/open.js";
import { systemClock, systemIds, systemLog } from "./system.js";

export interface StartOptions {
  env: Readonly<Record<string, string | undefined>>;
  cwd: string;
  /** Answers instead of model processes: to measure the server alone. Python is then not asked for. */
  inference?: Inference;
  log?: Log;
}

export interface RunningServer {
  url: string;
  config: Config;
  /** Made by this start, to be shown once; null when its owner has it already. */
  newAdminKey: string | null;
  close(): Promise<void>;
}

const repository = fileURLToPath(new URL("../../..", import.meta.url));
const trainerSource = join(repository, "trainer", "src");
const { version } = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")) as {
  version: string;
};
/** How long answers in flight may take when the server ends. */
const graceMs = 2000;

/** Throws AppError: `config_invalid`, `port_in_use`, `conflict`, `python_missing`, `python_unsupported`, `database_unavailable`. */
export async function startServer(options: StartOptions): Promise<RunningServer> {
  const config = loadConfig(options);
  const log = options.log ?? systemLog(options.env["FETTLE_LOG"] ?? "warn");
  mkdirSync(config.home, { recursive: true, mode: 0o700 });
  const owner = thisOwner();
  const serverFile = await claimHome(config.home, { owner, isDead: ownerIsDead });
  const undo: (() => Promise<unknown>)[] = [hearRejections(log)];
  const close = async (): Promise<void> => {
    for (const step of undo.splice(0).reverse()) {
      await step().catch((error: unknown) => log.error({ err: error }, "a part of the server did not end well"));
    }
  };
  try {
    const listening = await listen(config.server);
    undo.push(() => listening.close(graceMs));
    await removePartials(blobFolder(config));
    const python = config.python ?? join(repository, ".venv", "bin", "python");
    const [database] = await Promise.all([openStore(config), options.inference ? null : checkPython(python)]);
    undo.push(() => database.close());
    const deps = compose({ config, options, log, python, store: database.store, databaseUrl: database.url });
    undo.push(() => deps.inference.close());
    undo.push(() => deps.exporter.close());
    await forgetExports(deps);
    undo.push(() => deps.background.close());
    const processor = options.inference ? unmeasured : measure({ config, options, python, log });
    undo.push(() => processor.close());
    const runner = trainers({ config, options, python, log });
    undo.push(async () => runner.close());
    const dispatcher = dispatch({
      config,
      deps,
      owner,
      processor,
      runner,
      fourBitsLack: fourBits({ options, python }),
    });
    undo.push(() => dispatcher.close());
    const sweeper = startSweeper({ ...deps, tuner: tuner({ config, options, python }) });
    undo.push(() => sweeper.close());
    const newAdminKey = await ensureAdminKey(deps, { home: config.home, fromEnvironment: config.adminKey });
    const settings = {
      version,
      startedAt: systemClock.now(),
      allowedHosts: hostsOf(config),
      home: config.home,
      pricePerHour: config.runs.pricePerHour,
    };
    listening.open(createApp({ ...deps, settings }));
    await serverFile.write(listening.url);
    undo.push(() => serverFile.remove());
    return { url: listening.url, config, newAdminKey, close };
  } catch (error) {
    await close();
    throw error;
  }
}

/** A forgotten rejection is a fault of ours, but no reason to drop everybody's requests. */
function hearRejections(log: Log): () => Promise<unknown> {
  const hear = (error: unknown): void => log.error({ err: error }, "a promise was rejected and nobody listened");
  process.on("unhandledRejection", hear);
  return async () => process.off("unhandledRejection", hear);
}

const hostsOf = ({ server }: Config): string[] =>
  [...server.allowedHosts, server.host].map((host) => host.toLowerCase());

const blobFolder = ({ home }: Config): string => join(home, "blobs");

interface Parts {
  config: Config;
  options: StartOptions;
  python: string;
}

function compose({
  config,
  options,
  log,
  python,
  store,
  databaseUrl,
}: Parts & { log: Log; store: AppDeps["store"]; databaseUrl: string }): AppDeps {
  const blobs = localBlobs(blobFolder(config));
  const reader = dataReader();
  const background = startBackground({
    databaseUrl,
    executorId: createHash("sha256").update(`${hostname()}\n${config.home}`).digest("hex").slice(0, 16),
    processFile: (projectId, fileId) => processFile({ store, blobs, reader }, { projectId, fileId }),
    store,
    blobs,
    clock: systemClock,
    log,
  });
  const catalogue = new FolderCatalogue({
    home: config.home,
    models: config.models,
    hub: config.hub,
    bundledPath: join(trainerSource, "fettle_trainer", "models.json"),
    fetch: { python, env: { ...options.env, PYTHONPATH: trainerSource } },
    log,
    now: systemClock.now,
    onProgress: (progress) => log.info(progress, "making a base model ready"),
  });
  const inference = options.inference ?? modelProcesses({ config, options, python, log });
  const exporter = localExporter({
    command: [python, "-m", "fettle_trainer"],
    environment: options.env,
    extraEnvironment: { PYTHONPATH: trainerSource },
    numThreads: sharesOf(config).cores,
    log,
  });
  return { store, blobs, inference, catalogue, exporter, background, clock: systemClock, ids: systemIds, log };
}

/** Answers that grow at the same time in one process; memory for their keys and values is bounded beside it. */
const maxRows = 8;
const maxAdapters = 16;
const cacheMebibytes = 1024;

function modelProcesses({ config, options, python, log }: Parts & { log: Log }): Inference {
  const shares = sharesOf(config);
  return new InferencePool({
    python,
    trainerSource,
    environment: options.env,
    numThreads: shares.cores,
    maxRows,
    maxAdapters,
    cacheMebibytes,
    log,
    clock: systemClock,
    memoryBytes: shares.inferenceBytes,
    maxQueue: config.inference.maxQueue,
    idleMs: config.inference.idleSeconds * 1000,
  });
}

/** With the threads of a trainer. */
function measure({ config, options, python, log }: Parts & { log: Log }): Processor {
  const { trainerThreads } = sharesOf(config);
  return measureProcessor({
    home: config.home,
    python,
    environment: { ...trainerEnvironment(options.env, trainerThreads), PYTHONPATH: trainerSource },
    name: processorName(trainerThreads),
    log,
  });
}

/** A trainer gets ready when the server has long answered, and when no run follows the one that took the last. */
const [readyFirstMs, readyNextMs] = [10_000, 5_000];

function trainers({ config, options, python, log }: Parts & { log: Log }): LocalRunner {
  const { keepsTrainerReady, trainerThreads } = sharesOf(config);
  const waiting = { numThreads: trainerThreads, firstMs: readyFirstMs, nextMs: readyNextMs, log };
  return localRunner({
    runsFolder: join(config.home, "blobs", "runs"),
    command: [python, "-m", "fettle_trainer"],
    environment: options.env,
    extraEnvironment: { PYTHONPATH: trainerSource },
    niceness: 5,
    ...(keepsTrainerReady ? { waiting } : {}),
  });
}

const tuner = ({ options, python }: Parts): Tuner =>
  localTuner({
    command: [python, "-m", "fettle_trainer"],
    environment: options.env,
    extraEnvironment: { PYTHONPATH: trainerSource },
  });

const fourBits = ({ options, python }: Pick<Parts, "options" | "python">): (() => Promise<string | null>) =>
  fourBitsOf({ python, environment: { ...trainerEnvironment(options.env, 1), PYTHONPATH: trainerSource } });

interface Dispatching {
  config: Config;
  deps: AppDeps;
  owner: string;
  processor: Processor;
  runner: LocalRunner;
  fourBitsLack: () => Promise<string | null>;
}

function dispatch({ config, deps, owner, processor, runner, fourBitsLack }: Dispatching): Dispatcher {
  const shares: Shares = sharesOf(config);
  const machine = {
    memoryBytes: shares.trainingBytes,
    cores: shares.trainerThreads,
    name: processorName(shares.trainerThreads),
    product: processor.product,
    fourBitsLack,
  };
  return startDispatcher(
    { ...deps, runner, validate: async (run) => void (await validateRun({ ...deps, machine }, run)) },
    {
      owner,
      ownerIsDead,
      capacity: {
        maxConcurrent: config.runs.maxConcurrent === "auto" ? null : config.runs.maxConcurrent,
        memoryBytes: shares.trainingBytes,
      },
      numThreads: shares.trainerThreads,
      checkpointSeconds: config.runs.checkpointSeconds,
      layers: config.runs.layers,
    },
  );
}
