/** vitest globalSetup: one throw-away PostgreSQL for the whole test run, unless FETTLE_TEST_DATABASE_URL names a real one. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startPostgres } from "../src/store/postgres.js";

export default async function setup(): Promise<() => Promise<void>> {
  if (process.env.FETTLE_TEST_DATABASE_URL) return async () => undefined;
  const home = await mkdtemp(join(tmpdir(), "fettle-test-"));
  const postgres = await startPostgres({ home, durable: false });
  process.env.FETTLE_TEST_DATABASE_URL = postgres.url;
  return async () => {
    delete process.env.FETTLE_TEST_DATABASE_URL;
    await postgres.stop();
    await rm(home, { recursive: true, force: true });
  };
}
