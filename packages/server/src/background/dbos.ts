/**
 * Durable background work on DBOS, in the database of the store. What must be done is in the store first (a file
 * that is `uploaded`), so work asked for before DBOS is up, or while it cannot start, is found again and not lost.
 */
import type { DBOS as Dbos, DLogger } from "@dbos-inc/dbos-sdk";
import pg from "pg";
import type { Background, Blobs, Clock, Log, Store } from "../app/ports.js";
import { AppError } from "../domain/error.js";
import { sweepExpired } from "./sweep.js";

export interface BackgroundOptions {
  databaseUrl: string;
  /** The same for this data folder after each start: what a killed server had begun is then gone on with. */
  executorId: string;
  /** Reads and checks one file. May be called again for the same file. */
  processFile(projectId: string, fileId: string): Promise<void>;
  store: Store;
  blobs: Blobs;
  clock: Clock;
  log: Log;
  /** Attempts for a file before it is given up as `error`. */
  maxAttempts?: number;
  /** Seconds before the second attempt; doubles with each. */
  retrySeconds?: number;
}

export interface StartedBackground extends Background {
  /** Resolves when pending work is going on; never rejects. `false`: DBOS could not start and this process works alone. */
  ready: Promise<boolean>;
}

/** Code of these workflows: raise it when their steps change, so that old ones are not gone on with by new code. */
const applicationVersion = "fettle-background-1";
/** Files read at once: each takes a core. */
const maxAtOnce = 2;
const keepDays = 7;

/** Returns at once; DBOS is loaded and launched behind it. Call when the server listens. Once per process: DBOS is global. */
export function startBackground(options: BackgroundOptions): StartedBackground {
  const work = new BackgroundWork(options);
  return {
    ready: work.ready,
    processFile: (projectId, fileId) => work.processFile(projectId, fileId),
    close: () => work.close(),
  };
}

class BackgroundWork {
  readonly ready: Promise<boolean>;
  private dbos: typeof Dbos | null = null;
  private fileWorkflow: ((projectId: string, fileId: string) => Promise<void>) | null = null;
  /** Null: still starting. */
  private durable: boolean | null = null;
  private closed = false;
  private active = 0;
  private readonly waiting: (() => void)[] = [];
  private stopSweeping: (() => void) | null = null;
  private readonly pool: pg.Pool;

  constructor(private readonly options: BackgroundOptions) {
    this.pool = new pg.Pool({
      connectionString: options.databaseUrl,
      max: 4,
      application_name: "fettle-background",
      connectionTimeoutMillis: 10_000,
    });
    // A broken idle connection is replaced; without a listener its error would end the process.
    this.pool.on("error", () => undefined);
    this.ready = this.launch();
  }

  /** Resolves when the work is accepted, not when it is done. */
  async processFile(projectId: string, fileId: string): Promise<void> {
    // While starting, nothing needs to be kept: the launch ends with taking up every unprocessed file.
    if (this.durable === null || this.closed) return;
    if (this.durable) await this.startWorkflow(projectId, fileId);
    else this.workAlone(projectId, fileId);
  }

  async close(): Promise<void> {
    this.closed = true;
    this.stopSweeping?.();
    await this.ready;
    await this.dbos?.shutdown({ deregister: true, workflowCompletionTimeoutMS: 2_000 });
    if (!this.pool.ended) await this.pool.end();
  }

  private async launch(): Promise<boolean> {
    try {
      const { DBOS } = await import("@dbos-inc/dbos-sdk");
      if (this.closed) return false;
      await this.launchDbos(DBOS);
      this.durable = true;
    } catch (error) {
      this.durable = false;
      this.options.log.error(
        { err: error },
        "DBOS could not start: background work goes on in this process alone, without its retries over restarts",
      );
      this.stopSweeping = this.options.clock.every(600_000, () => void this.sweep());
    }
    await this.takeUpUnprocessed();
    return this.durable;
  }

  private async launchDbos(DBOS: typeof Dbos): Promise<void> {
    DBOS.setConfig({
      name: "fettle",
      systemDatabaseUrl: this.options.databaseUrl,
      systemDatabasePool: this.pool,
      systemDatabaseSchemaName: "fettle_dbos",
      // Schedules are for every ten minutes; the library's own default looks at them each second.
      schedulerPollingIntervalMs: 10_000,
      applicationVersion,
      executorID: this.options.executorId,
      logger: dbosLog(this.options.log),
    });
    const { maxAttempts = 5, retrySeconds = 1 } = this.options;
    this.fileWorkflow = DBOS.registerWorkflow(
      async (projectId: string, fileId: string) => {
        try {
          await DBOS.runStep(() => this.limited(() => this.options.processFile(projectId, fileId)), {
            name: "process",
            retriesAllowed: true,
            maxAttempts,
            intervalSeconds: retrySeconds,
            backoffRate: 2,
          });
        } catch (error) {
          await DBOS.runStep(() => this.giveUp(projectId, fileId, error), {
            name: "give up",
            retriesAllowed: true,
            maxAttempts: 10,
          });
        }
      },
      { name: "process_file", maxRecoveryAttempts: 20 },
    );
    const sweep = DBOS.registerWorkflow(
      async () => {
        await DBOS.runStep(() => this.sweep(), { name: "sweep" });
        await DBOS.runStep(() => this.forgetOldWorkflows(DBOS), { name: "forget" });
      },
      { name: "sweep_expired" },
    );
    await DBOS.launch();
    this.dbos = DBOS;
    await DBOS.applySchedules([
      { scheduleName: `sweep-${this.options.executorId}`, workflowFn: sweep, schedule: "*/10 * * * *" },
    ]);
  }

  /** One workflow a file, by id: asked for twice, it is done once. */
  private async startWorkflow(projectId: string, fileId: string): Promise<void> {
    if (this.dbos === null || this.fileWorkflow === null) return;
    await this.dbos.startWorkflow(this.fileWorkflow, { workflowID: `process-file:${fileId}` })(projectId, fileId);
  }

  private async takeUpUnprocessed(): Promise<void> {
    try {
      for (const file of await this.options.store.files.listUnprocessed()) {
        if (file.purpose === "fine-tune") await this.processFile(file.projectId, file.id);
      }
    } catch (error) {
      this.options.log.error(
        { err: error },
        "could not take up unprocessed files; they are taken up at the next start",
      );
    }
  }

  private workAlone(projectId: string, fileId: string): void {
    this.limited(() => this.options.processFile(projectId, fileId))
      .catch((error: unknown) => this.giveUp(projectId, fileId, error))
      .catch((error: unknown) => this.options.log.error({ file: fileId, err: error }, "could not process a file"));
  }

  /** A run that waits for the file must not wait for ever. */
  private async giveUp(projectId: string, fileId: string, error: unknown): Promise<void> {
    const last = lastError(error);
    const why = last instanceof AppError ? last.message : "a fault of ours; the log has the details.";
    this.options.log.error({ file: fileId, err: error }, "gave a file up");
    const file = await this.options.store.files.get(projectId, fileId);
    if (file?.status !== "uploaded") return;
    await this.options.store.files.setProcessed(projectId, fileId, {
      status: "error",
      statusDetails: `The file could not be read: ${why} Upload it again.`,
      report: null,
    });
  }

  private async sweep(): Promise<void> {
    try {
      const swept = await sweepExpired(this.options, this.options.clock.now());
      if (swept.files + swept.uploads + swept.answers > 0) this.options.log.info(swept, "ended what has expired");
    } catch (error) {
      this.options.log.error({ err: error }, "could not sweep; the next one is in ten minutes");
    }
  }

  /** DBOS keeps every workflow for ever otherwise. */
  private async forgetOldWorkflows(DBOS: typeof Dbos): Promise<void> {
    const endTime = new Date(this.options.clock.now() - keepDays * 86_400_000).toISOString();
    const old = await DBOS.listWorkflows({
      endTime,
      status: ["SUCCESS", "ERROR", "CANCELLED"],
      limit: 1_000,
      loadInput: false,
      loadOutput: false,
    });
    if (old.length > 0) await DBOS.deleteWorkflows(old.map((workflow) => workflow.workflowID));
  }

  private async limited<T>(work: () => Promise<T>): Promise<T> {
    if (this.active >= maxAtOnce) await new Promise<void>((resolve) => this.waiting.push(resolve));
    this.active += 1;
    try {
      return await work();
    } finally {
      this.active -= 1;
      this.waiting.shift()?.();
    }
  }
}

/** DBOS wraps the errors of all attempts into one. */
const lastError = (error: unknown): unknown =>
  error instanceof Error && "errors" in error && Array.isArray(error.errors) ? error.errors.at(-1) : error;

/** DBOS tells much; what it calls info is of no use in our log. */
function dbosLog(log: Log): DLogger {
  return {
    info: () => undefined,
    debug: () => undefined,
    warn: (entry) => log.warn({ from: "dbos" }, String(entry)),
    error: (entry, metadata) => log.error({ from: "dbos", stack: metadata?.stack }, String(entry)),
  };
}
