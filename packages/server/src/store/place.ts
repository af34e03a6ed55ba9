/** Chooses and prepares the folder of the embedded database. */
import { randomBytes } from "node:crypto";
import {
  chmodSync,
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { AppError } from "../domain/error.js";
import { type Account, blockedAt } from "./account.js";

/** Used when root's home is closed to the database's account: `<home>/postgres` then links to a folder in here. */
const sharedParent = "/var/lib/fettle";

export interface Place {
  /** Holds data/, password, port, postmaster.log. */
  folder: string;
  data: string;
  log: string;
  password: string;
}

/** Throws `database_unavailable` when no folder can be found that the account reaches. */
export function preparePlace(home: string, account: Account | null): Place {
  mkdirSync(home, { recursive: true, mode: 0o700 });
  const link = join(home, "postgres");
  if (!existsSync(link)) makeFolder(realpathSync(home), link, account);
  const folder = realpathSync(link);
  if (account !== null) openWay(realpathSync(home), folder, account);
  return {
    folder,
    data: join(folder, "data"),
    log: join(folder, "postmaster.log"),
    password: readOrMakePassword(join(folder, "password")),
  };
}

function makeFolder(home: string, link: string, account: Account | null): void {
  // A link whose target was deleted: exists as a link, not as a folder.
  rmSync(link, { force: true });
  const mode = account === null ? 0o700 : 0o711;
  const blocked = account === null ? null : blockedAt(home, account);
  if (blocked === null) {
    mkdirSync(link, { recursive: true, mode });
    return;
  }
  try {
    mkdirSync(sharedParent, { recursive: true, mode: 0o755 });
    const elsewhere = mkdtempSync(join(sharedParent, "postgres-"));
    chmodSync(elsewhere, mode);
    symlinkSync(elsewhere, link);
  } catch (cause) {
    throw new AppError(
      "database_unavailable",
      `Fettle runs as root, so PostgreSQL runs as \`${account?.name}\`, which may not pass ${blocked} on the way to ${home}; and ${sharedParent} cannot be made. Set FETTLE_HOME to a folder that every user may pass, such as /srv/fettle, or set DATABASE_URL.`,
      { cause },
    );
  }
}

/** The home itself is ours: it is opened for passing (not for listing). Folders above it are not touched. */
function openWay(home: string, folder: string, account: Account): void {
  const inside = join(folder, "data");
  for (const own of [home, folder]) {
    if (inside.startsWith(`${own}/`)) chmodSync(own, statSync(own).mode | 0o001);
  }
  const blocked = blockedAt(inside, account);
  if (blocked === null) return;
  throw new AppError(
    "database_unavailable",
    `Fettle runs as root, so PostgreSQL runs as \`${account.name}\`, which may not pass ${blocked} on the way to its data in ${dirname(inside)}. Run \`chmod o+x ${blocked}\`, or set FETTLE_HOME to another folder.`,
  );
}

/** Two processes starting at once end with the same password: the whole file appears at once, and only once. */
function readOrMakePassword(path: string): string {
  if (!existsSync(path)) {
    const partial = `${path}.${process.pid}.${randomBytes(4).toString("hex")}`;
    writeFileSync(partial, randomBytes(24).toString("hex"), { flag: "wx", mode: 0o600 });
    try {
      linkSync(partial, path);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    } finally {
      rmSync(partial);
    }
  }
  return readFileSync(path, "utf8").trim();
}
