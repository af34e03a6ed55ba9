/**
 * A trainer for tests: speaks the contract of docs/architecture.md without training anything.
 * FETTLE_SCRIPT (JSON) says what goes wrong:
 *   steps, stepMs, checkpointEvery, heartbeatMs
 *   faults: [{ step, attempts, do }]   at this step, in the first `attempts` attempts:
 *     "kill"  SIGKILL itself         "hang"  SIGSTOP itself          "exit3"  dies with words on stderr
 *     "stuck"  never goes on, its heartbeats do     "slow"  takes `ms` longer over the step
 *     "disk_full"  stops so          "failed"  writes the failed event
 *   deafToTerm: true   ignores SIGTERM
 *   bestLearningRate   the validation loss is least there, and a little different with each seed
 */
import { existsSync, fsyncSync, mkdirSync, openSync, readdirSync, readFileSync, renameSync, rmSync, truncateSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";

const script = { steps: 10, stepMs: 5, checkpointEvery: 3, heartbeatMs: 200, faults: [], ...JSON.parse(process.env.FETTLE_SCRIPT ?? "{}") };
const spec = JSON.parse(readFileSync(process.argv[3], "utf8"));
const checkpoints = join(spec.output_dir, "checkpoints");
const eventsPath = join(spec.output_dir, "events.jsonl");

let seq = repairEvents();
const events = openSync(eventsPath, "a");
function emit(type, fields) {
  seq += 1;
  writeSync(events, `${JSON.stringify({ seq, attempt: spec.attempt, time: Date.now() / 1000, type, ...fields })}\n`);
  fsyncSync(events);
}

/** Cuts a torn last line off; gives the seq of the last whole one. */
function repairEvents() {
  if (!existsSync(eventsPath)) return 0;
  const text = readFileSync(eventsPath, "utf8");
  const whole = text.slice(0, text.lastIndexOf("\n") + 1);
  if (whole.length < text.length) truncateSync(eventsPath, Buffer.byteLength(whole));
  const lines = whole.trim().split("\n").filter(Boolean);
  return lines.length === 0 ? 0 : JSON.parse(lines.at(-1)).seq;
}

function newestCheckpoint() {
  if (!existsSync(checkpoints)) return 0;
  return Math.max(0, ...readdirSync(checkpoints).filter((name) => existsSync(join(checkpoints, name, "manifest.json"))).map(Number));
}

function writeCheckpoint(step) {
  const folder = join(checkpoints, String(step));
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "state.json"), JSON.stringify({ step }));
  writeFileSync(join(folder, "manifest.partial"), "{}");
  renameSync(join(folder, "manifest.partial"), join(folder, "manifest.json"));
  emit("checkpoint", { step, path: `checkpoints/${step}`, sha256: "0".repeat(64), seconds: 0.001 });
  const kept = readdirSync(checkpoints).map(Number).sort((a, b) => b - a).slice(0, spec.runtime.keep_checkpoints);
  for (const name of readdirSync(checkpoints)) if (!kept.includes(Number(name))) rmSync(join(checkpoints, name), { recursive: true });
}

let step = newestCheckpoint();
let saved = step;
let asked = false;
process.on("SIGTERM", () => {
  if (!script.deafToTerm) asked = true;
});
let markedAt = performance.now();
function heartbeat() {
  const idle_s = (performance.now() - markedAt) / 1000;
  emit("heartbeat", { step, rss_bytes: process.memoryUsage().rss, phase: "training", idle_s, expected_s: script.stepMs / 1000 });
}
const beating = setInterval(heartbeat, script.heartbeatMs).unref();

function stop(reason, code) {
  if (reason === "signal" && step > saved) writeCheckpoint(step);
  emit("stopped", { reason, step });
  process.exit(code);
}

/** A torn line too: a kill may come in the middle of a write. */
const faults = {
  kill: () => {
    writeSync(events, '{"seq":99999,"type":"st');
    process.kill(process.pid, "SIGKILL");
  },
  hang: () => process.kill(process.pid, "SIGSTOP"),
  exit3: () => {
    process.stderr.write('Traceback (most recent call last):\n  File "x.py", line 1\nValueError: bad luck\n');
    process.exit(3);
  },
  stuck: () => {
    beating.ref();
    return new Promise(() => undefined);
  },
  slow: ({ ms }) => new Promise((resolve) => setTimeout(resolve, ms)),
  disk_full: () => stop("disk_full", 74),
  failed: () => {
    emit("failed", { code: "training_diverged", message: "The loss became NaN at step 4.", hint: "Lower the learning rate." });
    process.exit(1);
  },
};

function validLoss(step) {
  if (script.bestLearningRate === undefined) return 2.5 / step;
  const away = Math.abs(Math.log10(spec.hyperparameters.learning_rate / script.bestLearningRate));
  return 1 / step + away + (spec.seed % 7) * 0.001;
}

emit("started", { pid: process.pid, resumed_from_step: step > 0 ? step : null });
if (step === 0) {
  emit("data", { num_train_rows: 20, num_validation_rows: 2, num_train_tokens: 400, num_label_tokens: 100, num_truncated: 0, refused: [], num_refused: 0, total_steps: script.steps });
}
while (step < script.steps) {
  if (asked) stop("signal", 75);
  markedAt = performance.now();
  await new Promise((resolve) => setTimeout(resolve, script.stepMs));
  step += 1;
  const fault = script.faults.find((one) => one.step === step && spec.attempt <= (one.attempts ?? 1));
  if (fault) await faults[fault.do](fault);
  emit("step", {
    step,
    epoch: step / script.steps,
    train_loss: 2 / step,
    train_mean_token_accuracy: 1 - 1 / (step + 1),
    learning_rate: 0.001,
    grad_norm: 1,
    num_tokens: step * 40,
    tokens_per_second: 1000,
    eta_seconds: ((script.steps - step) * script.stepMs) / 1000,
  });
  if (step % script.checkpointEvery === 0 && step < script.steps) {
    emit("evaluation", { step, valid_loss: validLoss(step), valid_mean_token_accuracy: 0.5, metrics: {}, best: true });
    writeCheckpoint(step);
    saved = step;
  }
}
mkdirSync(join(spec.output_dir, "artefact"), { recursive: true });
writeFileSync(join(spec.output_dir, "artefact", "fettle.json"), "{}");
emit("finished", { step, best_step: step, trained_tokens: step * 40, artefact_path: "artefact", artefact_sha256: "1".repeat(64), peak_rss_bytes: 1, train_seconds: 1, early_stopped: false });
emit("verified", { max_abs_diff: 0 });
process.exit(0);
