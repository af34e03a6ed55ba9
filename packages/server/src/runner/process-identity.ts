/** Names a process for good: its number and when it began, so that a number used again is never mistaken for it. */
import { execFileSync } from "node:child_process";
import { readFileSync, readlinkSync } from "node:fs";
import { hostname } from "node:os";

export interface ProcessIdentity {
  /** The machine since its last boot, and the container within it, where the number means something. */
  where: string;
  pid: number;
  /** Opaque; equal for the same process only. */
  start: string;
}

/** Null when there is no such process, or it has ended and only waits to be collected. */
export function identifyProcess(pid: number): ProcessIdentity | null {
  const start = process.platform === "linux" ? linuxStart(pid) : psStart(pid);
  return start === null ? null : { where: whereAmI(), pid, start };
}

export function isAlive(identity: ProcessIdentity): boolean {
  return identity.where === whereAmI() && identifyProcess(identity.pid)?.start === identity.start;
}

/** This process as the owner of leases. */
export function thisOwner(): string {
  const identity = identifyProcess(process.pid);
  return identity === null
    ? `${hostname()}|${process.pid}|${Date.now()}`
    : `${identity.where}|${identity.pid}|${identity.start}`;
}

/** True only when the owner was a process of this machine, since this boot, and is gone: it will never write again. */
export function ownerIsDead(owner: string): boolean {
  const [where, pid, start] = owner.split("|");
  if (where !== whereAmI() || pid === undefined || start === undefined) return false;
  return !isAlive({ where, pid: Number(pid), start });
}

let cachedWhere: string | null = null;
function whereAmI(): string {
  cachedWhere ??= process.platform === "linux" ? `${bootId()}/${readlinkSync("/proc/self/ns/pid")}` : hostname();
  return cachedWhere;
}

const bootId = (): string => readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();

/** Clock ticks since boot: field 22 of stat, counted after the name, which may hold anything but ends at the last ")". */
function linuxStart(pid: number): string | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return fields[0] === "Z" || fields[0] === "X" ? null : (fields[19] ?? null);
  } catch {
    return null;
  }
}

function psStart(pid: number): string | null {
  try {
    const [state, ...start] = execFileSync("ps", ["-o", "state=,lstart=", "-p", String(pid)], {
      encoding: "utf8",
      env: { LC_ALL: "C", PATH: "/usr/bin:/bin" },
    })
      .trim()
      .split(/\s+/);
    return state === undefined || state.startsWith("Z") ? null : start.join(" ");
  } catch {
    return null;
  }
}
