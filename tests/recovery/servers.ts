/** Starts servers as processes of their own, to be killed. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import type { ServerOptions } from "./server-process.js";

const program = fileURLToPath(new URL("./server-process.ts", import.meta.url));

export interface ServerProcess {
  child: ChildProcess;
  /** From the start of the process until it dispatches runs. */
  readyMs: number;
  kill(signal: NodeJS.Signals): Promise<void>;
}

export async function startServerProcess(options: ServerOptions): Promise<ServerProcess> {
  const before = performance.now();
  const child = spawn(process.execPath, ["--import", "tsx", program, JSON.stringify(options)], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const ended = once(child, "exit");
  await Promise.race([
    new Promise<void>((resolve) => child.stdout?.once("data", () => resolve())),
    ended.then(([code]) => {
      throw new Error(`The server ended with ${String(code)} before it was ready.`);
    }),
  ]);
  const kill = async (signal: NodeJS.Signals): Promise<void> => {
    child.kill(signal);
    await ended;
  };
  return { child, readyMs: performance.now() - before, kill };
}
