/** Runs the command line in this process against a real server, and keeps what it said. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { runCli, type Local, type Surroundings } from "../../packages/client/src/cli/main.js";

export interface Said {
  code: number;
  stdout: string;
  stderr: string;
}

export interface Captured {
  /** An empty data folder. */
  home: string;
  local: Local;
  run(argv: string[], given?: Surroundings & { stdinText?: string }): Promise<Said>;
  /** stdout as exactly one JSON document on one line. */
  document(said: Said): unknown;
  close(): void;
}

export function captured(env: Record<string, string>): Captured {
  const home = mkdtempSync(join(tmpdir(), "fettle-cli-"));
  const local: Local = {
    version: "0.1.0",
    root: join(import.meta.dirname, "..", ".."),
    findPython: () => ({ path: "/usr/bin/python3", version: "3.12.0" }),
    pythonPackagesReady: () => true,
    up: async () => 0,
    demo: async () => 0,
  };
  return {
    home,
    local,
    async run(argv, given = {}) {
      const said = { stdout: "", stderr: "" };
      const code = await runCli(argv, local, {
        env: { FETTLE_HOME: home, ...env },
        stdin: { isTTY: given.stdinText === undefined, readAll: async () => given.stdinText ?? "" },
        terminal: {
          stdout: (text) => {
            said.stdout += text;
          },
          stderr: (text) => {
            said.stderr += text;
          },
          live: false,
          columns: 100,
        },
        ...given,
      });
      return { code, ...said };
    },
    document({ stdout }) {
      const lines = stdout.split("\n");
      if (lines.length !== 2 || lines[1] !== "") throw new Error(`stdout is not one line: ${JSON.stringify(stdout)}`);
      return JSON.parse(lines[0] ?? "");
    },
    close: () => rmSync(home, { recursive: true, force: true }),
  };
}
