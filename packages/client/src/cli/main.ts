/** Entry of the command line: arguments in, exit code out. */
import { CommanderError } from "commander";
import { Context, type Stdin, type Terminal } from "./context.js";
import { readEnvironment } from "./environment.js";
import { exitCodes, tell } from "./exit.js";
import type { Local } from "./local.js";
import { buildProgram } from "./program.js";

export type { DemoOptions, Local } from "./local.js";

/** Of this process. A reader that closes its end (`| head`) ends us quietly. */
export function processTerminal(ci: boolean): Terminal {
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code === "EPIPE") process.exit(exitCodes.ok);
    throw error;
  });
  return {
    stdout: (text) => void process.stdout.write(text),
    stderr: (text) => void process.stderr.write(text),
    live: process.stderr.isTTY === true && !ci,
    columns: process.stderr.columns ?? 100,
  };
}

const processStdin: Stdin = {
  get isTTY() {
    return process.stdin.isTTY === true;
  },
  async readAll() {
    const chunks: Buffer[] = [];
    for await (const chunk of process.stdin) chunks.push(chunk as Buffer);
    return Buffer.concat(chunks).toString("utf8");
  },
};

/** Of the process, unless given. */
export interface Surroundings {
  env?: NodeJS.ProcessEnv;
  terminal?: Terminal;
  stdin?: Stdin;
  /** Aborting is Ctrl-C. */
  interrupt?: AbortController;
}

/** `argv` without node and script. Resolves to the exit code; throws only on a fault of ours. */
export async function runCli(argv: readonly string[], local: Local, given: Surroundings = {}): Promise<number> {
  const environment = readEnvironment(given.env);
  const terminal = given.terminal ?? processTerminal(environment.ci);
  const interrupt = given.interrupt ?? new AbortController();
  const stdin = given.stdin ?? processStdin;
  let exitCode: number = exitCodes.ok;
  const onSignal = (): void => interrupt.abort();
  const program = buildProgram({
    local,
    context: (json) => new Context({ terminal, stdin, environment, json, signal: interrupt.signal }),
    async run(json, work) {
      try {
        exitCode = await work();
      } catch (error) {
        const told = tell(error);
        if (told === null) throw error;
        exitCode = told.exitCode;
        terminal.stderr(`${terminal.live ? "\r\x1b[K" : ""}${told.text}\n`);
        if (json) terminal.stdout(`${JSON.stringify(told.document)}\n`);
      }
    },
  });
  const json = argv.includes("--json");
  for (const command of [program, ...program.commands, ...program.commands.flatMap((one) => one.commands)]) {
    command.exitOverride().configureOutput({ writeOut: terminal.stdout, writeErr: terminal.stderr });
  }
  program.hook("preAction", (_, action) => {
    // The server ends itself in order: its first Ctrl-C is its own.
    if (action.name() !== "up") process.once("SIGINT", onSignal);
  });
  try {
    await program.parseAsync(argv, { from: "user" });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) return exitCodes.ok;
    if (json)
      terminal.stdout(
        `${JSON.stringify({ error: { code: "usage", message: error.message.replace(/^error: /, "") } })}\n`,
      );
    return exitCodes.usage;
  } finally {
    process.off("SIGINT", onSignal);
  }
  return exitCode;
}
