/**
 * Model folders written by child processes of the trainer, one after the other. A child whose server dies loses its
 * stdin and ends; what it had begun is taken away by the next one that writes there.
 */
import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { type ErrorCode, errorCatalogue } from "@fettle/contract";
import { z } from "zod";
import type { Exporter, ExportInput, Log } from "../app/ports.js";
import { AppError } from "../domain/error.js";
import { trainerEnvironment } from "./environment.js";

export interface ExporterOptions {
  /** Program and first arguments, such as `[python, "-m", "fettle_trainer"]`. */
  command: readonly string[];
  /** The server's environment; little of it reaches a child. */
  environment: Readonly<Record<string, string | undefined>>;
  extraEnvironment?: Readonly<Record<string, string>>;
  numThreads: number;
  log: Log;
}

const outputKept = 16_384;
const failedSchema = z.object({
  failed: z.object({
    code: z.enum(Object.keys(errorCatalogue) as [ErrorCode, ...ErrorCode[]]),
    message: z.string(),
  }),
});

const doingSchema = z.object({ doing: z.string() });
type Doing = (what: string) => void;

export const localExporter = (options: ExporterOptions): Exporter => new LocalExporter(options);

class LocalExporter implements Exporter {
  private readonly writing = new Map<string, Promise<void>>();
  private readonly ending = new AbortController();
  private last: Promise<unknown> = Promise.resolve();

  constructor(private readonly options: ExporterOptions) {}

  checkpoint(input: Parameters<Exporter["checkpoint"]>[0]): Promise<void> {
    const running = this.writing.get(input.out);
    if (running !== undefined) return running;
    const { runFolder, step, basePath, adapterPath, out } = input;
    const adapter = adapterPath === null ? [] : ["--adapter", adapterPath];
    const args = ["checkpoint", "--run", runFolder, "--step", String(step), "--base", basePath, ...adapter];
    const started = this.inTurn([...args, "--out", out], this.ending.signal).finally(() => this.writing.delete(out));
    this.writing.set(out, started);
    return started;
  }

  merge({ basePath, adapterPath, out }: Parameters<Exporter["merge"]>[0], signal: AbortSignal): Promise<void> {
    const args = ["merge", "--base", basePath, "--adapter", adapterPath, "--out", out];
    return this.inTurn(args, AbortSignal.any([signal, this.ending.signal]));
  }

  write(
    { sourcePath, basePath, runFolder, name, format, quantize, prune, out }: ExportInput,
    { signal, doing }: Parameters<Exporter["write"]>[1],
  ): Promise<void> {
    const args = ["export", "--source", sourcePath, "--base", basePath, "--run", runFolder, `--name=${name}`];
    args.push("--format", format, ...(quantize === null ? [] : ["--quantize", quantize]));
    args.push("--prune", String(prune), "--out", out);
    return this.inTurn(args, AbortSignal.any([signal, this.ending.signal]), doing);
  }

  async close(): Promise<void> {
    this.ending.abort();
    await this.last;
  }

  private inTurn(args: readonly string[], signal: AbortSignal, doing: Doing = () => undefined): Promise<void> {
    const mine = this.last.then(() => this.run(args, signal, doing));
    this.last = mine.catch(() => undefined);
    return mine;
  }

  private async run(args: readonly string[], signal: AbortSignal, doing: Doing): Promise<void> {
    if (signal.aborted) throw givenUp(signal);
    const [program = "", ...first] = this.options.command;
    const child = spawn(program, [...first, ...args, "--json", "--end-with-stdin"], {
      env: {
        ...trainerEnvironment(this.options.environment, this.options.numThreads),
        ...this.options.extraEnvironment,
      },
      stdio: ["pipe", "pipe", "pipe"],
    });
    const kill = (): void => void child.kill("SIGKILL");
    signal.addEventListener("abort", kill, { once: true });
    createInterface({ input: child.stdout }).on("line", (line) => {
      const told = doingSchema.safeParse(lastJson(line));
      if (told.success) doing(told.data.doing);
    });
    try {
      const end = await endOf(child, program);
      if (signal.aborted) throw givenUp(signal);
      if (end.exitCode !== 0) throw this.failure(args[0] ?? "", end);
    } finally {
      signal.removeEventListener("abort", kill);
    }
  }

  private failure(what: string, end: End): AppError {
    const told = failedSchema.safeParse(lastJson(end.stdout));
    if (told.success) return new AppError(told.data.failed.code, told.data.failed.message, { param: "model" });
    this.options.log.error({ what, ...end }, "a model could not be written");
    if (end.signal === "SIGKILL")
      return new AppError(
        "out_of_memory",
        "The process that writes the model was killed from outside, most likely for want of memory. Free memory, then ask again.",
      );
    const how = end.signal === null ? `with exit code ${end.exitCode}` : `by signal ${end.signal}`;
    return new AppError(
      "inference_failed",
      `The process that writes the model ended ${how}; the server's log has its last words. Ask again; if it stays, report it with them.`,
    );
  }
}

interface End {
  exitCode: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

function endOf(child: ChildProcessWithoutNullStreams, program: string): Promise<End> {
  const kept = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const)
    child[name].setEncoding("utf8").on("data", (text: string) => {
      kept[name] = (kept[name] + text).slice(-outputKept);
    });
  // A child that ends first breaks the pipe; its end is seen below.
  child.stdin.on("error", () => undefined);
  return new Promise((resolve, reject) => {
    child.once("error", (cause) =>
      reject(
        new AppError("python_missing", `Could not start ${program}: ${cause.message}. Run \`fettle doctor\`.`, {
          cause,
        }),
      ),
    );
    child.once("close", (exitCode, signal) => resolve({ exitCode, signal, ...kept }));
  });
}

function lastJson(text: string): unknown {
  try {
    return JSON.parse(text.trimEnd().split("\n").at(-1) ?? "");
  } catch {
    return null;
  }
}

const givenUp = (signal: AbortSignal): AppError =>
  new AppError("inference_failed", "The model was not written: the server ends, or nobody waits for it any more.", {
    cause: signal.reason,
  });
