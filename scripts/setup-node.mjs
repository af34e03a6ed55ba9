/** Checks Node and brings node_modules to what package-lock.json says. Plain Node: runs before node_modules exists. */
import { createHash } from "node:crypto";
import { existsSync, lstatSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { SetupError } from "./setup-progress.mjs";

const oldest = [20, 19];

/** Throws SetupError `node_unsupported` when this Node is older than 20.19. */
export function checkNode(version = process.versions.node) {
  const [major, minor] = version.split(".").map(Number);
  if (major > oldest[0] || (major === oldest[0] && minor >= oldest[1])) return;
  throw new SetupError(
    "node_unsupported",
    `This Node is too old: ${version} at ${process.execPath}. Fettle needs Node ${oldest.join(".")} or newer; 24 is recommended. Install it (\`nvm install 24\`, \`brew install node@24\`, or your distribution's package), then run the same command again.`,
  );
}

/** Changes whenever node_modules must be made anew: the lock, the package.json, Node's major, the platform. */
function fingerprint(root) {
  const hash = createHash("sha256");
  for (const path of ["package-lock.json", "package.json"]) hash.update(readFileSync(join(root, path)));
  hash.update(`${process.versions.node.split(".")[0]} ${process.platform} ${process.arch}`);
  return hash.digest("hex");
}

/**
 * `npm ci`, and where that refuses a good lock file (npm/cli#9846: optional packages of other platforms missing from
 * the registry), `npm install --no-save`, which takes the same versions and integrity hashes from the lock.
 */
export async function setUpNode({ root, progress }) {
  const modules = join(root, "node_modules");
  const stampPath = join(modules, ".fettle-stamp");
  if (lstatSync(modules, { throwIfNoEntry: false })?.isSymbolicLink()) return { changed: false };
  const wanted = fingerprint(root);
  if (existsSync(stampPath) && readFileSync(stampPath, "utf8") === wanted) return { changed: false };
  await progress.step("Node packages", (tools) => installPackages(root, tools), modules);
  writeFileSync(stampPath, wanted);
  return { changed: true };
}

async function installPackages(root, tools) {
  const lockPath = join(root, "package-lock.json");
  const lock = readFileSync(lockPath);
  const fix = "Check the network and `npm config get registry`, then run the same command again.";
  // The log level is said anew: under `npm run --silent` npm would inherit silence, and its reason would be lost.
  const quiet = ["--no-audit", "--no-fund", "--no-progress", "--loglevel=error"];
  rmSync(join(root, "node_modules", ".fettle-stamp"), { force: true });
  const clean = await tools.run("npm", ["ci", ...quiet], { cwd: root, fix, tolerate: true });
  if (clean.code === 0) return;
  if (!/EUSAGE|from lock file/.test(clean.output)) {
    throw new SetupError(
      "setup_failed",
      `\`npm ci\` ended with exit code ${clean.code}:\n${clean.output.split("\n").slice(-15).join("\n")}\n${fix}`,
    );
  }
  await tools.run("npm", ["install", "--no-save", ...quiet], { cwd: root, fix });
  if (!readFileSync(lockPath).equals(lock)) {
    writeFileSync(lockPath, lock);
    throw new SetupError(
      "setup_failed",
      "`npm install` wanted to change package-lock.json, so package.json and the lock disagree. Run `npm install`, look at the change, and commit both.",
    );
  }
  checkInstalled(root, JSON.parse(lock.toString()));
}

/** Everything installed must be what the lock names, by integrity; only optional packages of this platform may be absent from it. */
function checkInstalled(root, lock) {
  const installed = JSON.parse(readFileSync(join(root, "node_modules", ".package-lock.json"), "utf8"));
  for (const [path, entry] of Object.entries(installed.packages)) {
    const locked = lock.packages[path];
    if (entry.link || (locked === undefined && entry.optional)) continue;
    if (locked?.version === entry.version && locked?.integrity === entry.integrity) continue;
    throw new SetupError(
      "setup_failed",
      `${path} is ${entry.version} (${entry.integrity ?? "no hash"}), but package-lock.json names ${locked === undefined ? "no such package" : `${locked.version} (${locked.integrity ?? "no hash"})`}. Delete node_modules and run the same command again; if it stays, package.json and the lock disagree.`,
    );
  }
}
