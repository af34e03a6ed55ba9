import { spawn } from "node:child_process";
import { appendFileSync, existsSync, mkdirSync, readFileSync, utimesSync, writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TrainSpec } from "@fettle/contract";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { hyperparameters, scriptedTrainer } from "../../../../tests/recovery/platform.js";
import type { Log, Runner } from "../../src/app/ports.js";
import { type LocalRunner, localRunner } from "../../src/runner/local.js";
import { identifyProcess, isAlive, ownerIsDead, thisOwner } from "../../src/runner/process-identity.js";
import { eventually } from "../store/samples.js";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "fettle-runner-"));
});
afterEach(async () => {
  await runnerWith({}).kill("run-1");
  await rm(folder, { recursive: true, force: true });
});

function runnerWith(script: object, command: readonly string[] = scriptedTrainer): Runner {
  return localRunner({
    runsFolder: folder,
    command,
    environment: {
      PATH: process.env.PATH,
      HOME: "/home/x",
      OPENAI_API_KEY: "secret",
      DATABASE_URL: "postgres://secret",
    },
    extraEnvironment: { FETTLE_SCRIPT: JSON.stringify(script) },
    niceness: 3,
  });
}

const spec = (attempt = 1): TrainSpec => ({
  version: 1,
  run_id: "run-1",
  attempt,
  task: "chat",
  method: "lora",
  base_model: { name: "tiny", path: "/nonexistent", family: "decoder", adapter_path: null },
  data: { train_path: "/nonexistent", train_sha256: "0".repeat(64), validation_path: null, labels: null },
  output_dir: join(folder, "run-1"),
  hyperparameters,
  seed: 1,
  runtime: {
    device: "auto",
    dtype: "auto",
    num_threads: 2,
    parallelism: "ddp",
    checkpoint_seconds: 60,
    checkpoint_steps: 0,
    keep_checkpoints: 3,
    heartbeat_seconds: 1,
  },
});
const ended = (runner: Runner) =>
  eventually("the end", async () => ((await runner.state("run-1")).alive ? null : runner.state("run-1")));
const long = { steps: 100_000, stepMs: 10 };

describe("local runner", () => {
  it("runs a trainer to its end and knows its exit code", async () => {
    const runner = runnerWith({ steps: 3 });
    const { pid } = await runner.start(spec());
    expect(await ended(runner)).toEqual({ alive: false, pid, exitCode: 0, signal: null });
    const { events, offset, lastSignOfLife } = await runner.read("run-1", 0);
    expect(events.map((event) => event.type)).toEqual([
      "started",
      "data",
      "step",
      "step",
      "step",
      "finished",
      "verified",
    ]);
    expect(offset).toBe(readFileSync(join(folder, "run-1", "events.jsonl")).length);
    expect(Math.abs(Date.now() - (lastSignOfLife ?? 0))).toBeLessThan(60_000);
    expect(await runner.read("run-1", offset)).toMatchObject({ events: [], offset });
  });

  it("gives the trainer no secret of the server, and a session of its own", async () => {
    const runner = runnerWith({}, ["/bin/sh", "-c", "env; ps -o pid=,sid= -p $$ >&2"]);
    const { pid } = await runner.start(spec());
    await ended(runner);
    const said = await runner.stderr("run-1", 10_000);
    expect(said).not.toContain("secret");
    for (const line of ["HF_HUB_OFFLINE=1", "OMP_NUM_THREADS=2", "HOME=/home/x", `FETTLE_SCRIPT={}`])
      expect(said).toContain(line);
    expect(said.replace(/\s+/g, " ")).toContain(`${pid} ${pid}`);
  });

  it("refuses a second trainer while one is alive, from any server", async () => {
    await runnerWith(long).start(spec());
    await expect(runnerWith(long).start(spec(2))).rejects.toMatchObject({
      code: "conflict",
      message: expect.stringContaining("is alive"),
    });
  });

  it("is adopted by another server, which stops it in order or kills it", async () => {
    await runnerWith(long).start(spec());
    const other = runnerWith(long);
    await eventually("a step", async () =>
      (await other.read("run-1", 0)).events.some((event) => event.type === "step"),
    );
    expect(await other.state("run-1")).toMatchObject({ alive: true, exitCode: null });
    await other.stop("run-1");
    expect(await ended(other)).toMatchObject({ alive: false, exitCode: null });
    expect((await other.read("run-1", 0)).events.at(-1)).toMatchObject({ type: "stopped", reason: "signal" });

    await other.start(spec(2));
    await other.kill("run-1");
    expect(await ended(other)).toMatchObject({ alive: false, signal: "SIGKILL" });
  });

  it("leaves no child of the trainer behind", async () => {
    const runner = runnerWith({}, ["/bin/sh", "-c", `sleep 600 & echo $! > ${join(folder, "child")}; wait`]);
    await runner.start(spec());
    const child = await eventually("the child", () => {
      try {
        return Number(readFileSync(join(folder, "child"), "utf8")) || null;
      } catch {
        return null;
      }
    });
    await runner.kill("run-1");
    await eventually("the end of the child", () => identifyProcess(child) === null);
  });

  it("never mistakes another process for the trainer when its number is used again", async () => {
    const bystander = spawn("sleep", ["60"], { stdio: "ignore" });
    const identity = identifyProcess(bystander.pid ?? 0);
    mkdirSync(join(folder, "run-1"));
    writeFileSync(
      join(folder, "run-1", "pid.json"),
      JSON.stringify({ ...identity, start: "1", attempt: 1, stderrFrom: 0 }),
    );
    const runner = runnerWith({});
    expect((await runner.state("run-1")).alive).toBe(false);
    await runner.kill("run-1");
    await runner.stop("run-1");
    expect(identifyProcess(bystander.pid ?? 0)).toEqual(identity);
    bystander.kill("SIGKILL");
    await eventually("its end", () => identity !== null && !isAlive(identity));
  });

  it("starts no trainer that nobody would know of: the process ends when its number could not be written", async () => {
    mkdirSync(join(folder, "run-1", "pid.json"), { recursive: true });
    const started = join(folder, "started");
    await expect(runnerWith({}, ["/bin/sh", "-c", `touch ${started}`]).start(spec())).rejects.toThrow();
    await rm(join(folder, "run-1", "pid.json"), { recursive: true });
    const runner = runnerWith({}, ["/bin/sh", "-c", "exit 5"]);
    await runner.start(spec());
    expect(await ended(runner)).toMatchObject({ exitCode: 5 });
    expect(existsSync(started)).toBe(false);
  });

  it("says what could not be started", async () => {
    const runner = runnerWith({}, ["/nonexistent/fettle/python"]);
    await runner.start(spec());
    expect(await ended(runner)).toMatchObject({ exitCode: 127 });
    expect(await runner.stderr("run-1", 1_000)).toContain("/nonexistent/fettle/python");
  });

  it("shows the last words of this attempt alone", async () => {
    const runner = runnerWith({}, ["/bin/sh", "-c", 'echo "first $0" >&2']);
    await runner.start(spec());
    await ended(runner);
    await runner.start(spec(2));
    await ended(runner);
    expect(await runner.stderr("run-1", 1_000)).toBe("first train\n");
    expect(await runner.stderr("run-1", 6)).toBe("train\n");
  });
});

/** Stands in for the trainer: what waits becomes a run's trainer by its line, and says which it was. */
const readyOrCold = `case "$1" in
  wait) echo "$@" > "$0.told"; echo $$ >> "$0.waiting"; IFS= read -r line <&3 || exit 0; echo "$line" > "$0.line"; kill -STOP $$ ;;
  *) echo "cold $2" > "$0.cold" ;;
esac`;

describe("a waiting trainer", () => {
  let runner: LocalRunner;
  let warned: string[];
  const script = (): string => join(folder, "trainer.sh");
  const read = (name: string): string => readFileSync(`${script()}.${name}`, "utf8").trim();
  const waiting = (): number[] => (existsSync(`${script()}.waiting`) ? read("waiting").split("\n").map(Number) : []);
  const keep = (text = readyOrCold, numThreads = 2): void => {
    writeFileSync(script(), text);
    const log = { warn: (_: unknown, message: string) => void warned.push(message) } as unknown as Log;
    runner = localRunner({
      runsFolder: folder,
      command: ["/bin/sh", script()],
      environment: { PATH: process.env.PATH, OPENAI_API_KEY: "secret" },
      waiting: { numThreads, firstMs: 1, nextMs: 1, log },
    });
  };
  beforeEach(() => {
    warned = [];
  });
  afterEach(async () => {
    await runner.kill("run-1");
    runner.close();
    for (const pid of waiting()) await eventually("its end", () => identifyProcess(pid) === null);
  });

  it("becomes the run's trainer when its number is on disk, and another waits when it has ended", async () => {
    keep();
    const [first] = await eventually("one that waits", () => (waiting().length === 1 ? waiting() : null));
    expect(read("told")).toBe("wait");
    expect(await runner.start(spec())).toEqual({ pid: first });
    const line = await eventually("its line", () => (existsSync(`${script()}.line`) ? read("line") : null));
    const run = join(folder, "run-1");
    expect(JSON.parse(line)).toEqual({ spec: join(run, "spec.json"), log: join(run, "stderr.log") });
    expect(JSON.parse(readFileSync(join(run, "pid.json"), "utf8"))).toMatchObject({ pid: first, attempt: 1 });
    expect(await runner.state("run-1")).toMatchObject({ alive: true, pid: first });
    expect(existsSync(`${script()}.cold`)).toBe(false);
    // Beside a run it would take the run's processor: others find none, as long as the first is at work.
    for (const run_id of ["run-2", "run-3"]) {
      await runner.start({ ...spec(), run_id });
      await eventually("its end", async () => !(await runner.state(run_id)).alive);
      expect(read("cold")).toBe(`cold ${join(folder, run_id, "spec.json")}`);
    }
    expect(waiting()).toEqual([first]);
    await runner.kill("run-1");
    expect(await ended(runner)).toMatchObject({ pid: first, signal: "SIGKILL" });
    await eventually("the next one", () => waiting().length === 2);
    expect(read("told")).toBe(`wait --base ${spec().base_model.path}`);
    expect(warned).toEqual([]);
  });

  it("is told the base of the newest run, also by a server that has just begun", async () => {
    const runs = { "run-8": "/older", "run-9": "/newer", "run-7": "/oldest" };
    for (const [age, [run, path]] of Object.entries(runs).entries()) {
      const at = join(folder, run, "spec.json");
      mkdirSync(join(folder, run));
      writeFileSync(at, JSON.stringify({ ...spec(), run_id: run, base_model: { ...spec().base_model, path } }));
      const seconds = 1_000_000 + (run === "run-9" ? 10 : -age);
      utimesSync(at, seconds, seconds);
    }
    mkdirSync(join(folder, "run-of-no-spec"));
    writeFileSync(join(folder, "a file"), "");
    keep();
    await eventually("one that waits", () => waiting().length === 1);
    expect(read("told")).toBe("wait --base /newer");
  });

  it.each(["{}", "no JSON"])("waits for any run when the newest one's spec is %s", async (text) => {
    mkdirSync(join(folder, "run-9"));
    writeFileSync(join(folder, "run-9", "spec.json"), text);
    keep();
    await eventually("one that waits", () => waiting().length === 1);
    expect(read("told")).toBe("wait");
  });

  it("is not taken for another number of threads: the run starts at once without it", async () => {
    keep(readyOrCold, 3);
    await eventually("one that waits", () => waiting().length === 1);
    const { pid } = await runner.start(spec());
    expect(waiting()).not.toContain(pid);
    await ended(runner);
    expect(read("cold")).toBe(`cold ${join(folder, "run-1", "spec.json")}`);
  });

  it("ends with its server, and when its number could not be written", async () => {
    keep();
    const [first = 0] = await eventually("one that waits", () => (waiting().length === 1 ? waiting() : null));
    mkdirSync(join(folder, "run-1", "pid.json"), { recursive: true });
    await expect(runner.start(spec())).rejects.toThrow();
    await eventually("its end", () => identifyProcess(first) === null);
    expect(existsSync(`${script()}.line`)).toBe(false);
    await rm(join(folder, "run-1", "pid.json"), { recursive: true });
    const next = await eventually("the next one", () => waiting()[1] ?? null);
    runner.close();
    await eventually("its end", () => identifyProcess(next) === null);
  });

  it("is missed by nobody when it ended by itself", async () => {
    keep(`[ "$1" = wait ] && exit 3; echo cold > "$0.cold"`);
    await eventually("the warning", () => warned.length > 0);
    await runner.start(spec());
    await ended(runner);
    expect(read("cold")).toBe("cold");
    expect(warned).toEqual(["the waiting trainer ended; runs start without one, and another is started later"]);
  });
});

describe("events file", () => {
  const line = (seq: number) =>
    `${JSON.stringify({ seq, attempt: 1, time: 1, type: "log", level: "info", message: `m${seq} ä` })}\n`;
  const file = () => join(folder, "run-1", "events.jsonl");
  beforeEach(() => mkdirSync(join(folder, "run-1")));

  it("gives whole lines only, wherever it was cut", async () => {
    const whole = line(1) + line(2);
    const bytes = Buffer.from(whole);
    for (let cut = 0; cut <= bytes.length; cut += 7) {
      writeFileSync(file(), bytes.subarray(0, cut));
      const first = await runnerWith({}).read("run-1", 0);
      appendFileSync(file(), bytes.subarray(cut));
      const rest = await runnerWith({}).read("run-1", first.offset);
      expect([...first.events, ...rest.events].map((event) => event.seq)).toEqual([1, 2]);
      expect(rest.offset).toBe(bytes.length);
    }
  });

  it("tells a line that is no event, and goes on", async () => {
    writeFileSync(file(), `${line(1)}{"seq":2,"type":"dance"}\nnot json\n${line(3)}`);
    const { events } = await runnerWith({}).read("run-1", 0);
    expect(events.map((event) => [event.seq, event.type])).toEqual([
      [1, "log"],
      [0, "log"],
      [0, "log"],
      [3, "log"],
    ]);
    expect(events[1]).toMatchObject({
      level: "warn",
      message: expect.stringContaining("is no event"),
      data: { byte: Buffer.byteLength(line(1)) },
    });
  });

  it("reads a long file in pieces and a line longer than a piece", async () => {
    const big = JSON.stringify({
      seq: 1,
      attempt: 1,
      time: 1,
      type: "log",
      level: "info",
      message: "x".repeat(3_000_000),
    });
    writeFileSync(file(), `${big}\n${line(2)}`);
    const seen: number[] = [];
    for (let offset = 0; ; ) {
      const read = await runnerWith({}).read("run-1", offset);
      if (read.offset === offset) break;
      seen.push(...read.events.map((event) => event.seq));
      offset = read.offset;
    }
    expect(seen).toEqual([1, 2]);
  });
});

describe("owners", () => {
  it("knows itself alive, a gone process dead, and says nothing of other machines", async () => {
    expect(ownerIsDead(thisOwner())).toBe(false);
    const child = spawn("sleep", ["60"], { stdio: "ignore" });
    const identity = identifyProcess(child.pid ?? 0);
    const owner = `${identity?.where}|${identity?.pid}|${identity?.start}`;
    expect(ownerIsDead(owner)).toBe(false);
    child.kill("SIGKILL");
    await eventually("its end", () => ownerIsDead(owner));
    expect(ownerIsDead(owner.replace("|", "x|"))).toBe(false);
    expect(ownerIsDead("server-a")).toBe(false);
  });
});
