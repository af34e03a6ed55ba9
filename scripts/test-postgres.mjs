/** A throw-away server made from the PostgreSQL programs of this machine (Debian's, Homebrew's, ...). */
import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { chownSync, existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

const folders = ["/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt"];

/** Folder with initdb and pg_ctl: of PATH, else the newest installed. Null when there is none. */
function findPrograms() {
  const onPath = (process.env.PATH ?? "").split(":").filter((folder) => existsSync(join(folder, "initdb")));
  const installed = folders
    .filter((folder) => existsSync(folder))
    .flatMap((folder) => readdirSync(folder).map((name) => join(folder, name, "bin")))
    .filter((folder) => existsSync(join(folder, "initdb")))
    .sort((a, b) => Number.parseFloat(b.split("/").at(-2)) - Number.parseFloat(a.split("/").at(-2)));
  return [...installed, ...onPath][0] ?? null;
}

function freePort() {
  return new Promise((done, fail) => {
    const server = createServer().on("error", fail);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => done(port));
    });
  });
}

/** PostgreSQL refuses to run as root: another user of this machine owns the folder and runs the programs. */
function owner() {
  if (process.getuid?.() !== 0) return {};
  const idOf = (flag, name) => Number(execFileSync("id", [flag, name], { encoding: "utf8" }));
  for (const name of ["postgres", "nobody"]) {
    try {
      return { uid: idOf("-u", name), gid: idOf("-g", name) };
    } catch {
      // this user does not exist; the next one may
    }
  }
  throw new Error(
    "PostgreSQL does not run as root, and there is no user postgres or nobody to run it as. Run the tests as another user.",
  );
}

/**
 * `{ url, stop() }` of a real server: FETTLE_TEST_DATABASE_URL when set, else one on 127.0.0.1 with a password of its
 * own. Throws when no PostgreSQL is installed.
 */
export async function startRealPostgres() {
  const given = process.env.FETTLE_TEST_DATABASE_URL;
  if (given) return { url: given, stop: async () => undefined };
  const programs = findPrograms();
  if (programs === null)
    throw new Error(
      "No PostgreSQL is installed here: found no initdb on PATH nor in the usual folders. Install it (Debian: `apt-get install postgresql`), or set FETTLE_TEST_DATABASE_URL.",
    );
  const user = owner();
  const folder = mkdtempSync(join(tmpdir(), "fettle-postgres-"));
  if (user.uid !== undefined) chownSync(folder, user.uid, user.gid);
  const [data, password, port] = [join(folder, "data"), randomBytes(12).toString("hex"), await freePort()];
  const passwordFile = join(folder, "password");
  writeFileSync(passwordFile, password, { mode: 0o600 });
  if (user.uid !== undefined) chownSync(passwordFile, user.uid, user.gid);
  const run = (name, args) =>
    execFileSync(join(programs, name), args, {
      ...user,
      cwd: folder,
      stdio: ["ignore", "ignore", "inherit"],
      env: { ...process.env, LC_ALL: "C" },
    });
  run("initdb", [
    "-D",
    data,
    "-U",
    "fettle",
    "--auth=scram-sha-256",
    `--pwfile=${passwordFile}`,
    "--encoding=UTF8",
    "--locale=C",
  ]);
  const settings = `-c listen_addresses=127.0.0.1 -c port=${port} -c unix_socket_directories= -c max_connections=200`;
  run("pg_ctl", ["-D", data, "-w", "-o", settings, "-l", join(folder, "log"), "start"]);
  console.error(`real PostgreSQL from ${programs} on port ${port}`);
  return {
    url: `postgres://fettle:${password}@127.0.0.1:${port}/postgres`,
    stop: async () => {
      run("pg_ctl", ["-D", data, "-w", "-m", "fast", "stop"]);
      rmSync(folder, { recursive: true, force: true });
    },
  };
}
