/** Steps of a set-up: said on stderr with seconds and size, run as child processes, one set-up at a time. */
import { spawn } from "node:child_process";
import {
  closeSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeSync,
} from "node:fs";
import { dirname, join } from "node:path";

/** A set-up that cannot go on. `code` is one of the error catalogue. */
export class SetupError extends Error {
  constructor(code, message) {
    super(message);
    this.name = "SetupError";
    this.code = code;
  }
}

const quietMs = 15_000;

/** Bytes of all files under `folder`. */
function sizeOf(folder) {
  let bytes = 0;
  if (!existsSync(folder)) return 0;
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) bytes += sizeOf(path);
    else bytes += lstatSync(path).size;
  }
  return bytes;
}

const seconds = (since) => `${((Date.now() - since) / 1000).toFixed(1)} s`;
const megabytes = (bytes) => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${Math.round(bytes / 1e6)} MB`);

/** Talks on stderr. `live` redraws one line (a terminal); else a line at start, every 15 s, and at the end. */
export function createProgress({ out = process.stderr, live = out.isTTY === true } = {}) {
  const clear = live ? "\r\x1b[K" : "";
  const say = (text) => out.write(`${clear}${text}\n`);
  return {
    say,
    /** Runs `work(tools)`; tells the seconds and by how much `folder` grew, or the words that `work` returns instead. */
    async step(label, work, folder) {
      const start = Date.now();
      const before = folder === undefined ? 0 : sizeOf(folder);
      let detail = "";
      let lastSaid = start;
      const draw = () => {
        const text = `  ${label} … ${seconds(start)}${detail ? `  ${detail}` : ""}`;
        if (live) out.write(`${clear}${text.slice(0, (out.columns ?? 100) - 1)}`);
        else if (Date.now() - lastSaid > quietMs) {
          say(text);
          lastSaid = Date.now();
        }
      };
      if (!live) say(`  ${label} …`);
      const timer = setInterval(draw, 200);
      const tools = {
        run: (command, args, options) => runQuietly(command, args, { ...options, onDetail: (text) => (detail = text) }),
      };
      let outcome;
      try {
        outcome = await work(tools);
      } finally {
        clearInterval(timer);
        if (live) out.write(clear);
      }
      const grown = folder === undefined ? "" : `, ${megabytes(sizeOf(folder) - before)}`;
      say(outcome === undefined ? `  ${label}: ready in ${seconds(start)}${grown}` : `  ${label}: ${outcome}`);
    },
  };
}

/**
 * Runs a program with its output captured; throws SetupError `setup_failed` with the last lines when it ends badly.
 * The child shares our process group, so Ctrl-C ends it too; a signal sent to us alone is passed on.
 */
export function runQuietly(
  command,
  args,
  { fix, cwd, env, detail = () => undefined, onDetail = () => {}, tolerate = false },
) {
  return new Promise((resolve, reject) => {
    // Listening before the child lives: a signal in between would end us and leave it at work.
    let interrupted = false;
    const passOn = (signal) => {
      interrupted = true;
      child.kill(signal);
    };
    for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, passOn);
    const child = spawn(command, args, { cwd, env: env ?? process.env, stdio: ["ignore", "pipe", "pipe"] });
    const lines = [];
    const take = (stream) => {
      let rest = "";
      stream.setEncoding("utf8");
      stream.on("data", (chunk) => {
        const parts = (rest + chunk).split("\n");
        rest = parts.pop();
        for (const line of parts) keep(line);
      });
      stream.on("end", () => rest && keep(rest));
    };
    const keep = (line) => {
      if (!/^(npm )?(warn|notice|WARNING)\b/i.test(line)) lines.push(line);
      if (lines.length > 400) lines.splice(0, 200);
      const told = detail(line);
      if (told) onDetail(told);
    };
    take(child.stdout);
    take(child.stderr);
    const done = (settle) => {
      for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.off(signal, passOn);
      settle();
    };
    const shown = [command.split("/").at(-1), ...args].join(" ");
    child.on("error", (cause) =>
      done(() => reject(new SetupError("setup_failed", `\`${shown}\` could not be started: ${cause.message}. ${fix}`))),
    );
    child.on("close", (code, signal) =>
      done(() => {
        const output = lines.join("\n");
        if (code === 0 || (tolerate && code !== null && !interrupted)) return resolve({ code, output });
        if (interrupted || signal === "SIGINT" || signal === "SIGTERM")
          return reject(
            new SetupError("interrupted", "Set-up was interrupted. Run the same command again: it goes on from here."),
          );
        reject(
          new SetupError(
            "setup_failed",
            `\`${shown}\` ended with ${signal ?? `exit code ${code}`}:\n${lines.slice(-15).join("\n")}\n${fix}`,
          ),
        );
      }),
    );
  });
}

const staleMs = 15_000;

/**
 * Runs `work` while holding the lock file; waits while another live process holds it. The holder touches the file every
 * second, so a lock whose owner was killed is taken over, at once when its pid is gone, else after 15 s.
 */
export async function withLock(path, { onWait, work }) {
  mkdirSync(dirname(path), { recursive: true });
  for (let told = false; !tryLock(path); told = true) {
    if (!told) onWait(readHolder(path) ?? "another process");
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  const beat = setInterval(() => utimesSync(path, new Date(), new Date()), 1000);
  try {
    return await work();
  } finally {
    clearInterval(beat);
    rmSync(path, { force: true });
  }
}

function tryLock(path) {
  try {
    const handle = openSync(path, "wx");
    writeSync(handle, String(process.pid));
    closeSync(handle);
    return true;
  } catch (error) {
    if (error.code !== "EEXIST") throw error;
  }
  const holder = readHolder(path);
  if (holder !== null && isStale(path, holder)) removeStale(path, holder);
  return false;
}

function readHolder(path) {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return null;
  }
}

function isStale(path, holder) {
  const age = Date.now() - (statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? Date.now());
  if (age > staleMs) return true;
  // An empty file is a lock being written right now.
  if (holder === "") return false;
  try {
    process.kill(Number(holder), 0);
    return false;
  } catch (error) {
    return error.code === "ESRCH";
  }
}

/** Two may find the same stale lock: the rename has one winner, and who moved a fresh lock away puts it back. */
function removeStale(path, holder) {
  const aside = `${path}.${process.pid}`;
  try {
    renameSync(path, aside);
    if (readFileSync(aside, "utf8") !== holder) linkSync(aside, path);
  } catch {
    // somebody else was first
  }
  rmSync(aside, { force: true });
}
