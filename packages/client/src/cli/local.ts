/** What only a checkout can do; scripts/fettle.mjs hands it in, since the client knows neither server nor examples. */

export interface UpOptions {
  port?: number;
}

export interface DemoOptions {
  /** One part alone; null: encoder and decoder. */
  only: "encoder" | "decoder" | "seq2seq" | null;
  /** The encoder-decoder part too. */
  all: boolean;
  /** Talk goes to stderr; the last line of stdout is one JSON document. */
  json: boolean;
  signal: AbortSignal;
}

export interface FoundPython {
  path: string;
  version: string;
}

export interface Local {
  version: string;
  /** The checkout's folder. */
  root: string;
  /** Throws an Error whose message says what is missing and how to mend it. */
  findPython(): FoundPython;
  /** True when `.venv` holds what the lock files say. */
  pythonPackagesReady(): boolean;
  /** Runs the server until it is ended; the exit code. */
  up(options: UpOptions & { json: boolean }): Promise<number>;
  /** Runs the demo; the exit code. */
  demo(options: DemoOptions): Promise<number>;
}
