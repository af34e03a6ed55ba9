/**
 * A server reduced to what survives kills: database, dispatcher, trainers. `argv[2]` is `ServerOptions` as JSON.
 * Prints one line `ready` when runs are dispatched; ends in order on SIGTERM.
 */
import { openStore } from "../../packages/server/src/store/open.js";
import { buildParts, dispatch, type Script } from "./platform.js";

export interface ServerOptions {
  home: string;
  /** Null: the embedded PostgreSQL in `home`. */
  databaseUrl: string | null;
  script: Script;
}

const options = JSON.parse(process.argv[2] ?? "{}") as ServerOptions;
const open = await openStore(options);
const dispatcher = dispatch(buildParts(open.store, options.home, { script: options.script }));
await open.store.ping();
process.stdout.write("ready\n");
process.on("SIGTERM", () => {
  void dispatcher
    .close()
    .then(() => open.close())
    .then(() => process.exit(0));
});
