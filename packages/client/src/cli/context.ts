/** What a command works with: the client, and the two ways of speaking (results on stdout, talk on stderr). */
import { Fettle } from "../fettle.js";
import { type Environment, findServer } from "./environment.js";

export interface Terminal {
  stdout(text: string): void;
  stderr(text: string): void;
  /** stderr is a terminal: a progress line may be redrawn. */
  live: boolean;
  columns: number;
}

export interface Stdin {
  isTTY: boolean;
  readAll(): Promise<string>;
}

interface Parts {
  terminal: Terminal;
  stdin: Stdin;
  environment: Environment;
  json: boolean;
  /** Aborted by Ctrl-C. */
  signal: AbortSignal;
}

export class Context {
  readonly terminal: Terminal;
  readonly stdin: Stdin;
  readonly environment: Environment;
  readonly json: boolean;
  readonly signal: AbortSignal;
  private known: Fettle | null = null;

  constructor(parts: Parts) {
    this.terminal = parts.terminal;
    this.stdin = parts.stdin;
    this.environment = parts.environment;
    this.json = parts.json;
    this.signal = parts.signal;
  }

  /** Throws CliError `missing_api_key` when no key is known. */
  get client(): Fettle {
    this.known ??= new Fettle(findServer(this.environment));
    return this.known;
  }

  /** Talk: progress, hints. */
  say(text: string): void {
    this.terminal.stderr(`${this.terminal.live ? "\r\x1b[K" : ""}${text}\n`);
  }

  /** One line that the next one replaces; nothing when stderr is no terminal. */
  draw(text: string): void {
    if (this.terminal.live) this.terminal.stderr(`\r\x1b[K${text.slice(0, this.terminal.columns - 1)}`);
  }

  /** The command's one result: the document with `--json`, else the text. */
  result(document: unknown, text: string): void {
    this.terminal.stdout(this.json ? `${JSON.stringify(document)}\n` : text === "" ? "" : `${text}\n`);
  }
}
