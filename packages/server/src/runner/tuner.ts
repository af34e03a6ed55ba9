/** Asks the trainer's Python where to look next: one short process a question, which keeps nothing. */
import { spawn } from "node:child_process";
import { z } from "zod";
import type { Tuner } from "../app/ports.js";
import { trainerEnvironment } from "./environment.js";

export interface TunerOptions {
  /** Program and first arguments, such as `[python, "-m", "fettle_trainer"]`. */
  command: readonly string[];
  /** The server's environment; little of it reaches a child. */
  environment: Readonly<Record<string, string | undefined>>;
  extraEnvironment?: Readonly<Record<string, string>>;
  /** An answer takes a second or two. */
  timeoutMs?: number;
}

const valuesSchema = z.record(z.string(), z.union([z.number(), z.string(), z.null()]));
const sharesSchema = z.record(z.string(), z.number());
const stderrKept = 2_000;

export function localTuner(options: TunerOptions): Tuner {
  return {
    suggest: async (question) => valuesSchema.parse(await ask(options, "suggest", question)),
    importance: async (question) => sharesSchema.parse(await ask(options, "importance", question)),
  };
}

function ask(options: TunerOptions, what: string, question: unknown): Promise<unknown> {
  const [program = "", ...first] = options.command;
  const child = spawn(program, [...first, "tune", what], {
    env: { ...trainerEnvironment(options.environment, 1), ...options.extraEnvironment },
    stdio: ["pipe", "pipe", "pipe"],
    timeout: options.timeoutMs ?? 60_000,
    killSignal: "SIGKILL",
  });
  let [stdout, stderr] = ["", ""];
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr = (stderr + text).slice(-stderrKept);
  });
  // A child that ends first breaks the pipe; its end is seen below.
  child.stdin.on("error", () => undefined);
  child.stdin.end(JSON.stringify(question));
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code, signal) => {
      if (code === 0) resolve(JSON.parse(stdout));
      else reject(new Error(`tune ${what} ended ${signal === null ? `with ${code}` : `by ${signal}`}: ${stderr}`));
    });
  });
}
