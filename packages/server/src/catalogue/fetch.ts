/** Asks `python -m fettle_trainer.fetch` for a model, or for what the hub says of one. */
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { errorCatalogue } from "@fettle/contract";
import { z } from "zod";
import { AppError } from "../domain/error.js";

export interface FetchCommand {
  /** The interpreter that has the trainer's packages. */
  python: string;
  /** Environment of the child; holds PYTHONPATH when the trainer is not installed. */
  env: Readonly<Record<string, string | undefined>>;
}

export interface FetchProgress {
  model: string;
  message: string;
  /** Bytes, or 0 of 0 when unknown. */
  done: number;
  total: number;
}

const lineSchema = z.discriminatedUnion("type", [
  z.object({ type: z.literal("progress"), message: z.string(), done: z.number(), total: z.number() }),
  z.object({ type: z.literal("ready"), path: z.string() }),
  z.object({
    type: z.literal("described"),
    config: z.unknown(),
    num_parameters: z.number().nullable(),
    licence: z.string().nullable(),
  }),
  z.object({
    type: z.literal("failed"),
    code: z.enum(Object.keys(errorCatalogue) as [keyof typeof errorCatalogue]),
    message: z.string(),
  }),
]);
type Line = z.infer<typeof lineSchema>;
export type Described = Extract<Line, { type: "described" }>;

/** Puts `name` into the folder `dest`. Throws AppError. */
export async function fetchModel(
  command: FetchCommand,
  job: { name: string; dest: string; onProgress: (progress: FetchProgress) => void },
): Promise<void> {
  const last = await ask(command, [job.name, "--dest", job.dest], (line) => {
    if (line.type === "progress")
      job.onProgress({ model: job.name, message: line.message, done: line.done, total: line.total });
  });
  if (last.type !== "ready") throw new AppError("model_unavailable", `Fetching ${job.name} ended without a result.`);
}

/** What the hub says of `name`. Throws AppError. */
export async function describeModel(command: FetchCommand, name: string): Promise<Described> {
  const last = await ask(command, [name, "--describe"], () => undefined);
  if (last.type !== "described")
    throw new AppError("model_unavailable", `Asking the hub about ${name} ended without an answer.`);
  return last;
}

/** Runs the command to its end; the last line that is not progress is the answer. */
async function ask(command: FetchCommand, args: readonly string[], onLine: (line: Line) => void): Promise<Line> {
  const child = spawn(command.python, ["-m", "fettle_trainer.fetch", ...args, "--json"], {
    env: command.env,
    stdio: ["ignore", "pipe", "pipe"],
  });
  let stderr = "";
  child.stderr.on("data", (chunk: Buffer) => {
    stderr = (stderr + chunk.toString("utf8")).slice(-2000);
  });
  const ended = new Promise<number | null>((resolve, reject) => {
    child.on("error", (cause) =>
      reject(
        new AppError("python_missing", `Could not start ${command.python}: ${cause.message}. Run \`fettle doctor\`.`, {
          cause,
        }),
      ),
    );
    child.on("close", resolve);
  });
  const [last, exitCode] = await Promise.all([readLines(child.stdout, onLine), ended]);
  if (last === null) {
    throw new AppError(
      "model_unavailable",
      `\`fettle_trainer.fetch ${args.join(" ")}\` ended with exit code ${exitCode} and no answer. It said: ${stderr.trim() || "nothing"}`,
    );
  }
  if (last.type === "failed") throw new AppError(last.code, last.message, { param: "model" });
  return last;
}

async function readLines(stream: NodeJS.ReadableStream, onLine: (line: Line) => void): Promise<Line | null> {
  let last: Line | null = null;
  for await (const text of createInterface({ input: stream })) {
    const parsed = text.startsWith("{") ? lineSchema.safeParse(JSON.parse(text)) : null;
    if (!parsed?.success) continue; // a library printed to stdout
    onLine(parsed.data);
    if (parsed.data.type !== "progress") last = parsed.data;
  }
  return last;
}
