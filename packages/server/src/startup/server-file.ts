/** `<home>/server.json`: where the running server answers. One server at a time holds a home. */
import { readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { AppError } from "../domain/error.js";

const fileSchema = z.object({ url: z.string(), pid: z.number().int(), owner: z.string() });

export interface ServerFile {
  write(url: string): Promise<void>;
  remove(): Promise<void>;
}

/** Throws `conflict` when another living server holds the home. `owner` names this process; `isDead` knows a name of the past. */
export async function claimHome(
  home: string,
  identity: { owner: string; isDead: (owner: string) => boolean },
): Promise<ServerFile> {
  const path = join(home, "server.json");
  const other = await readServerFile(path);
  if (other !== null && other.owner !== identity.owner && !identity.isDead(other.owner)) {
    throw new AppError(
      "conflict",
      `Fettle already runs for ${home} at ${other.url} (process ${other.pid}). Use that one, stop it, or set FETTLE_HOME to another folder.`,
    );
  }
  return {
    write: (url) =>
      writeFile(path, `${JSON.stringify({ url, pid: process.pid, owner: identity.owner })}\n`, { mode: 0o600 }),
    remove: () => rm(path, { force: true }),
  };
}

async function readServerFile(path: string): Promise<z.infer<typeof fileSchema> | null> {
  try {
    const parsed = fileSchema.safeParse(JSON.parse(await readFile(path, "utf8")));
    return parsed.success ? parsed.data : null;
  } catch {
    return null;
  }
}
