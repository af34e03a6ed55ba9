/**
 * The first key of an installation. FETTLE_ADMIN_KEY wins; else one is generated once, kept in `<home>/admin_key`
 * (0600) and told once. A database that has no key yet takes the one of the file: same home, new database.
 */
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { AppDeps } from "../app/deps.js";
import { adoptEnvironmentKey, createKey, defaultProject, newSecret } from "../app/keys.js";

/** The key to show, when it was made just now; null when its owner has it already. */
export async function ensureAdminKey(
  deps: Pick<AppDeps, "store" | "clock" | "ids">,
  input: { home: string; fromEnvironment: string | null },
): Promise<string | null> {
  if (input.fromEnvironment !== null) {
    await adoptEnvironmentKey(deps, input.fromEnvironment);
    return null;
  }
  if ((await deps.store.keys.count()) > 0) return null;
  const path = join(input.home, "admin_key");
  const kept = await readKey(path);
  const secret = kept ?? newSecret(deps);
  await createKey(deps, { projectId: defaultProject, name: "admin", role: "admin" }, secret);
  if (kept !== null) return null;
  await mkdir(input.home, { recursive: true, mode: 0o700 });
  await writeFile(path, `${secret}\n`, { mode: 0o600 });
  return secret;
}

async function readKey(path: string): Promise<string | null> {
  try {
    const text = (await readFile(path, "utf8")).trim();
    return text === "" ? null : text;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw error;
  }
}
