/** vitest globalSetup: one throw-away PostgreSQL for the whole test run, unless FETTLE_TEST_DATABASE_URL names a real one. */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ownerIsDead, thisOwner } from "../src/runner/process-identity.js";
import { startPostgres } from "../src/store/postgres.js";

const prefix = "fettle-test-cluster-";

export default async function setup(): Promise<() => Promise<void>> {
  if (process.env.FETTLE_TEST_DATABASE_URL) return async () => undefined;
  await endAbandoned();
  const home = await mkdtemp(join(tmpdir(), prefix));
  writeFileSync(join(home, "owner"), thisOwner());
  const postgres = await startPostgres({ home, durable: false });
  process.env.FETTLE_TEST_DATABASE_URL = postgres.url;
  return async () => {
    delete process.env.FETTLE_TEST_DATABASE_URL;
    await postgres.stop();
    await rm(home, { recursive: true, force: true });
  };
}

/** Clusters of test runs that were killed. */
async function endAbandoned(): Promise<void> {
  for (const name of readdirSync(tmpdir()).filter((one) => one.startsWith(prefix))) {
    const home = join(tmpdir(), name);
    try {
      if (!ownerIsDead(readFileSync(join(home, "owner"), "utf8"))) continue;
      const pid = Number(readFileSync(join(home, "postgres", "data", "postmaster.pid"), "utf8").split("\n")[0]);
      // SIGQUIT: nothing of it is needed any more.
      process.kill(pid, "SIGQUIT");
    } catch {
      // Another user's, or one that ended by itself: its folder is left to the system.
      continue;
    }
    await rm(home, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 });
  }
}
