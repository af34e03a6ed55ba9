/** PostgreSQL refuses to run as root: then it runs as `postgres` or `nobody`, which must be able to reach its files. */
import { readFileSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { AppError } from "../domain/error.js";

export interface Account {
  name: string;
  uid: number;
  gid: number;
}

/** Null: this process is not root, and runs the database under its own account. */
export function databaseAccount(): Account | null {
  if (process.getuid?.() !== 0) return null;
  const accounts = readFileSync("/etc/passwd", "utf8").split("\n").map(parseAccount);
  for (const wanted of ["postgres", "nobody"]) {
    const found = accounts.find((account) => account?.name === wanted);
    if (found) return found;
  }
  throw new AppError(
    "database_unavailable",
    "Fettle runs as root, PostgreSQL refuses root, and /etc/passwd has neither a user `postgres` nor `nobody` to run it as. Start Fettle as another user, or set DATABASE_URL.",
  );
}

function parseAccount(line: string): Account | null {
  const [name, , uid, gid] = line.split(":");
  return name && Number(uid) > 0 ? { name, uid: Number(uid), gid: Number(gid) } : null;
}

/** True when the account may pass every folder on the way to `path`. Read by mode bits: root could always pass. */
export function canReach(path: string, account: Account): boolean {
  return blockedAt(path, account) === null;
}

/** The topmost folder on the way to `path` that the account may not pass, or null. */
export function blockedAt(path: string, account: Account): string | null {
  const folders: string[] = [];
  for (let folder = dirname(path); ; folder = dirname(folder)) {
    folders.unshift(folder);
    if (folder === dirname(folder)) break;
  }
  return folders.find((folder) => !mayPass(folder, account)) ?? null;
}

function mayPass(folder: string, account: Account): boolean {
  const { mode, uid, gid } = statSync(folder);
  if (uid === account.uid) return (mode & 0o100) !== 0;
  if (gid === account.gid) return (mode & 0o010) !== 0;
  return (mode & 0o001) !== 0;
}
