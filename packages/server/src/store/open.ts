/** Opens the store on the embedded database or on the one at `databaseUrl`. */
import type { Store } from "../app/ports.js";
import { openDatabase } from "./database.js";
import { fileStore } from "./files.js";
import { idempotencyStore } from "./idempotency.js";
import { keyStore } from "./keys.js";
import { migrate } from "./migrate.js";
import { modelStore } from "./models.js";
import { startPostgres } from "./postgres.js";
import { openRunFeed } from "./run-feed.js";
import { runStore } from "./runs.js";
import { sweepStore } from "./sweeps.js";
import { uploadStore } from "./uploads.js";

export interface OpenStore {
  store: Store;
  /** For other users of the same database, such as background work. */
  url: string;
  /** Closes connections, then ends the embedded database. */
  close(): Promise<void>;
}

export async function openStore(options: { home: string; databaseUrl: string | null }): Promise<OpenStore> {
  if (options.databaseUrl !== null) {
    const store = await connectStore(options.databaseUrl);
    return { store, url: options.databaseUrl, close: () => store.close() };
  }
  const postgres = await startPostgres({ home: options.home });
  try {
    const store = await connectStore(postgres.url);
    return {
      store,
      url: postgres.url,
      close: async () => {
        await store.close();
        await postgres.stop();
      },
    };
  } catch (error) {
    await postgres.stop();
    throw error;
  }
}

/** Migrates the database at `url` and opens the store on it. */
export async function connectStore(url: string): Promise<Store> {
  await migrate(url);
  const database = openDatabase(url);
  const feed = openRunFeed(url);
  return {
    keys: keyStore(database),
    files: fileStore(database),
    uploads: uploadStore(database),
    runs: runStore(database, feed),
    sweeps: sweepStore(database),
    models: modelStore(database),
    idempotency: idempotencyStore(database),
    ping: async () => {
      try {
        await database.rows("select 1");
        return true;
      } catch {
        return false;
      }
    },
    close: async () => {
      await feed.close();
      await database.close();
    },
  };
}
