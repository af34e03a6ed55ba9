/**
 * One model process: `python -m fettle_trainer serve` for one base model.
 *
 *   loading -> ready -> ended          requests may be sent from the first moment; the pipe holds them
 *
 * `ended` is final, whether we closed it, it was killed or it could not load: every request still open then
 * gets an AppError, and the pool starts another process for the next request. The process holds nothing that
 * must be kept, so ending it is closing its stdin; it also ends by itself when this server dies.
 */
import { type ChildProcessByStdio, spawn } from "node:child_process";
import type { Readable, Writable } from "node:stream";
import type { ErrorCode } from "@fettle/contract";
import type { InferenceTarget, Log } from "../app/ports.js";
import { AppError } from "../domain/error.js";
import { Answers } from "./answers.js";
import { parseMessage, type WireAnswer, type WireMessage, type WireRequest } from "./wire.js";

export interface ProcessOptions {
  /** Path of the Python interpreter that has the trainer's packages. */
  python: string;
  /** Folder that holds the package `fettle_trainer`. */
  trainerSource: string;
  /** Environment of the process; PYTHONPATH and thread counts are added. */
  environment: Readonly<Record<string, string | undefined>>;
  numThreads: number;
  /** Answers that grow at the same time; more wait inside the process. */
  maxRows: number;
  maxAdapters: number;
  /** Bound of the keys and values of a batch. */
  cacheMebibytes: number;
  log: Log;
}

/** Enough for the end of a Python traceback. */
const stderrKept = 4096;
/** A line longer than this is no message: embeddings of 2048 long texts stay below. */
const maxLineLength = 256 * 1024 * 1024;
/** How long a process may take to end after its stdin is closed, before it is killed. */
const graceMs = 2000;

export class ModelProcess {
  private readonly child: ChildProcessByStdio<Writable, Readable, Readable>;
  private readonly open = new Map<string, Answers>();
  private readonly closed: Promise<void>;
  private stderr = "";
  private partial: string[] = [];
  private partialLength = 0;
  private fatal: { code: ErrorCode; message: string } | null = null;
  private counter = 0;
  private hasEnded = false;
  /** Resident memory as the process last said; 0 while it loads. */
  rssBytes = 0;
  adapters: string[] = [];

  constructor(
    readonly target: Pick<InferenceTarget, "basePath" | "family">,
    private readonly options: ProcessOptions,
  ) {
    this.child = spawn(options.python, commandLine(target, options), {
      stdio: ["pipe", "pipe", "pipe"],
      env: {
        ...options.environment,
        PYTHONPATH: options.trainerSource,
        PYTHONUNBUFFERED: "1",
        OMP_NUM_THREADS: String(options.numThreads),
        TOKENIZERS_PARALLELISM: "false",
        HF_HUB_OFFLINE: "1",
      },
    });
    this.child.stdout.setEncoding("utf8").on("data", (text: string) => this.readLines(text));
    this.child.stderr.setEncoding("utf8").on("data", (text: string) => {
      this.stderr = (this.stderr + text).slice(-stderrKept);
    });
    // A write to a process that has just died: its end is reported by "close" below.
    this.child.stdin.on("error", () => {});
    this.closed = new Promise((resolve) => {
      this.child.once("error", (cause) => {
        this.end(
          new AppError(
            "python_missing",
            `The model process cannot be started: ${cause.message}. Expected a Python at ${options.python}; \`fettle doctor\` shows how to install it.`,
            { cause },
          ),
        );
        resolve();
      });
      this.child.once("close", (exitCode, signal) => {
        this.end(this.deathOf(exitCode, signal));
        resolve();
      });
    });
  }

  get pid(): number | undefined {
    return this.child.pid;
  }

  get ended(): boolean {
    return this.hasEnded;
  }

  /** Requests that have not got their last message. */
  get numOpen(): number {
    return this.open.size;
  }

  /** Messages of one request. Leaving the loop or aborting cancels it; aborting throws the signal's reason. */
  async *send(request: WireRequest, signal: AbortSignal): AsyncGenerator<WireAnswer, void, undefined> {
    signal.throwIfAborted();
    if (this.hasEnded) throw this.deathOf(this.child.exitCode, this.child.signalCode);
    this.counter += 1;
    const id = String(this.counter);
    const answers = new Answers();
    const abort = (): void => {
      answers.fail(signal.reason);
      this.cancel(id);
    };
    this.open.set(id, answers);
    signal.addEventListener("abort", abort, { once: true });
    try {
      this.write({ ...request, id });
      yield* answers;
    } finally {
      signal.removeEventListener("abort", abort);
      this.cancel(id);
    }
  }

  /** Ends the process and with it every open request. */
  async close(): Promise<void> {
    this.child.stdin.end();
    const timer = setTimeout(() => this.child.kill("SIGKILL"), graceMs);
    await this.closed;
    clearTimeout(timer);
  }

  private cancel(id: string): void {
    if (!this.open.delete(id) || this.hasEnded) return;
    this.write({ id, op: "cancel" });
  }

  private write(line: object): void {
    if (this.child.stdin.writable) this.child.stdin.write(`${JSON.stringify(line)}\n`);
  }

  private readLines(text: string): void {
    let rest = text;
    for (let at = rest.indexOf("\n"); at >= 0; at = rest.indexOf("\n")) {
      const line = this.partial.join("") + rest.slice(0, at);
      this.partial = [];
      this.partialLength = 0;
      rest = rest.slice(at + 1);
      this.readLine(line);
    }
    if (rest === "") return;
    this.partial.push(rest);
    this.partialLength += rest.length;
    if (this.partialLength > maxLineLength) this.distrust(new Error(`a line longer than ${maxLineLength} characters`));
  }

  private readLine(line: string): void {
    try {
      this.take(parseMessage(line));
    } catch (cause) {
      this.distrust(cause);
    }
  }

  /** After a line that is no message nothing that follows can be trusted: the process ends, its requests fail. */
  private distrust(cause: unknown): void {
    this.options.log.error(
      { err: cause, basePath: this.target.basePath },
      "A model process said something that is no message; it is ended.",
    );
    this.child.kill("SIGKILL");
  }

  private take(message: WireMessage): void {
    switch (message.type) {
      case "ready":
        this.rssBytes = message.rss_bytes;
        return;
      case "state":
        this.rssBytes = message.rss_bytes;
        this.adapters = message.adapters;
        return;
      case "fatal":
        this.fatal = message;
        return;
      case "error":
        if (message.id !== null) this.settle(message.id)?.fail(new AppError(message.code, message.message));
        return;
      case "cancelled":
        return;
      case "start":
      case "delta":
        this.open.get(message.id)?.push(message);
        return;
      default: {
        const answers = this.settle(message.id);
        answers?.push(message);
        answers?.end();
      }
    }
  }

  private settle(id: string): Answers | undefined {
    const answers = this.open.get(id);
    this.open.delete(id);
    return answers;
  }

  private end(error: AppError): void {
    if (this.hasEnded) return;
    this.hasEnded = true;
    if (this.open.size > 0)
      this.options.log.error(
        { basePath: this.target.basePath, numRequests: this.open.size, stderr: this.stderr },
        error.message,
      );
    for (const answers of this.open.values()) answers.fail(error);
    this.open.clear();
  }

  private deathOf(exitCode: number | null, signal: NodeJS.Signals | null): AppError {
    if (this.fatal !== null) return new AppError(this.fatal.code, this.fatal.message);
    const how = signal === null ? `with exit code ${exitCode}` : `by signal ${signal}`;
    return new AppError(
      "inference_failed",
      `The model process of ${this.target.basePath} ended ${how} while answering. Send the request again: it is started anew.`,
      {
        details: { stderr: this.stderr.slice(-1000) },
      },
    );
  }
}

function commandLine(target: Pick<InferenceTarget, "basePath" | "family">, options: ProcessOptions): string[] {
  const flags = {
    "--base": target.basePath,
    "--family": target.family,
    "--threads": options.numThreads,
    "--max-rows": options.maxRows,
    "--max-adapters": options.maxAdapters,
    "--cache-mebibytes": options.cacheMebibytes,
  };
  return ["-m", "fettle_trainer", "serve", ...Object.entries(flags).flatMap(([flag, value]) => [flag, String(value)])];
}
