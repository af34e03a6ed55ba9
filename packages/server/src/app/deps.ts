/** What the use cases are handed. Each takes only the part it needs; main.ts and tests build the whole. */
import type { Background, Blobs, Catalogue, Clock, Exporter, Ids, Inference, Log, Store } from "./ports.js";

export interface AppDeps {
  store: Store;
  blobs: Blobs;
  inference: Inference;
  catalogue: Catalogue;
  exporter: Exporter;
  background: Background;
  clock: Clock;
  ids: Ids;
  log: Log;
}

/** Who asks: every use case works inside one project. */
export interface Caller {
  projectId: string;
  keyId: string;
  role: "admin" | "member";
}
