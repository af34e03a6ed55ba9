/**
 * A server reduced to what survives kills: database, dispatcher, sweeps, trainers. `argv[2]` is `ServerOptions` as JSON.
 * Prints one line `ready` when runs are dispatched; ends in order on SIGTERM.
 */
import { startSweeper } from "../../packages/server/src/app/sweeper.js";
import { openStore } from "../../packages/server/src/store/open.js";
import { buildParts, dispatch, noTuner, oneModel, type Script, tinyModel } from "./platform.js";

export interface ServerOptions {
  home: string;
  /** Null: the embedded PostgreSQL in `home`. */
  databaseUrl: string | null;
  script: Script;
}

const options = JSON.parse(process.argv[2] ?? "{}") as ServerOptions;
const open = await openStore(options);
const parts = buildParts(open.store, options.home, { script: options.script });
const dispatcher = dispatch(parts);
const sweeper = startSweeper({ ...parts, catalogue: oneModel(tinyModel), tuner: noTuner }, { tickMs: 200 });
await open.store.ping();
process.stdout.write("ready\n");
process.on("SIGTERM", () => {
  void sweeper
    .close()
    .then(() => dispatcher.close())
    .then(() => open.close())
    .then(() => process.exit(0));
});
