import type { IncomingMessage } from "node:http";
import type { AppDeps, Caller } from "../app/deps.js";

export interface HttpSettings {
  version: string;
  /** Milliseconds since 1970. */
  startedAt: number;
  /** Names beside localhost and IP addresses that the Host header may carry, lower case. */
  allowedHosts: readonly string[];
  /** The data folder, for the free space in the status. */
  home: string;
  /** What an hour of this machine costs; 0: not known. */
  pricePerHour: number;
}

export interface HttpDeps extends AppDeps {
  settings: HttpSettings;
}

/** What middleware leaves for handlers. `incoming` is absent in tests that call the app in memory. */
export interface HttpEnv {
  Bindings: { incoming?: IncomingMessage };
  Variables: { requestId: string; caller: Caller };
}
