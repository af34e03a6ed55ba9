/** A sweep carried out in memory: runs start at once, take their time on a clock of ticks, and score as they are told. */
import { hyperparameters } from "../../../../tests/recovery/platform.js";
import { endedStatuses, type Run } from "../../src/domain/job.js";
import type { Values } from "../../src/domain/search-space.js";
import {
  type Evaluation,
  nextActions,
  type Plan,
  type Sweep,
  type SweepAction,
  type Trial,
} from "../../src/domain/sweep.js";
import { sampleRun, sampleSweep } from "../store/samples.js";

export interface Options {
  sweep?: Partial<Sweep>;
  /** Evaluations of a whole trial, one an epoch. */
  epochs?: number;
  loss(values: Values, seed: number, epoch: number): number;
  /** Runs at once. */
  places?: number;
  /** Of an epoch. */
  epochMs?: number;
  change?(run: Run): Run;
  suggest?(world: SweepWorld): Pick<Plan, "values">;
}

export class SweepWorld {
  sweep: Sweep;
  now = 0;
  readonly told: SweepAction[] = [];
  mostAtWork = 0;
  private readonly runs = new Map<string, { run: Run; evaluations: Evaluation[] }>();

  constructor(private readonly options: Options) {
    this.sweep = sampleSweep(options.sweep);
  }

  get trials(): Trial[] {
    return this.sweep.plans.map((plan) => ({
      plan,
      ...(this.runs.get(plan.runId) ?? { run: null, evaluations: [] }),
    }));
  }

  /** Until it has ended. */
  finish(): this {
    for (let round = 0; round < 20_000; round += 1) {
      if (this.sweep.finishedAt !== null) return this;
      if (!this.act()) this.pass();
    }
    throw new Error(`It does not end: ${JSON.stringify(this.sweep)}`);
  }

  /** False: nothing is to be done now. */
  act(): boolean {
    const actions = nextActions(this.sweep, this.trials, this.now);
    for (const action of actions) this.carryOut(action);
    return actions.length > 0;
  }

  private carryOut(action: SweepAction): void {
    this.told.push(action);
    const plan = "number" in action ? this.sweep.plans[action.number] : undefined;
    if (action.type === "plan" || action.type === "suggest") {
      const next = action.type === "plan" ? action.plan : { ...action.otherwise, ...this.options.suggest?.(this) };
      const planned: Plan = { ...next, runId: `run-${next.number}`, stopped: null };
      this.sweep = { ...this.sweep, plans: [...this.sweep.plans, planned] };
    } else if (action.type === "create_run" && plan !== undefined) this.create(plan);
    else if (action.type === "stop" && plan !== undefined) {
      const stopped = { why: action.why, reason: action.reason };
      this.sweep = { ...this.sweep, plans: this.sweep.plans.map((one) => (one === plan ? { ...one, stopped } : one)) };
    } else if (action.type === "cancel_run" && plan !== undefined)
      this.put(plan.runId, (run) => ({ ...run, status: "cancelled", finishedAt: this.now }));
    else if (action.type === "end")
      this.sweep = { ...this.sweep, status: action.status, error: action.error, finishedAt: this.now };
  }

  private create({ runId, seed, values }: Plan): void {
    const { epochs = 4, change = (run) => run } = this.options;
    const own = { ...hyperparameters, num_train_epochs: epochs, ...(values as object) };
    const request = { suffix: null, task: null, method: null, hyperparameters: {}, integrations: null };
    const run = sampleRun({ id: runId, seed, hyperparameters: own, request, totalSteps: epochs });
    this.runs.set(runId, { run: change(run), evaluations: [] });
  }

  /** One epoch of every run that is at work. */
  private pass(): void {
    const { places = 1, epochMs = 1_000, epochs = 4, loss } = this.options;
    const open = this.trials.filter(({ run }) => run !== null && !endedStatuses.includes(run.status));
    const atWork = open.slice(0, places);
    this.mostAtWork = Math.max(this.mostAtWork, atWork.length);
    for (const { plan } of atWork)
      this.put(plan.runId, (run) => ({ ...run, status: "running", startedAt: run.startedAt ?? this.now }));
    if (this.act()) return;
    this.now += epochMs;
    for (const { plan } of atWork) {
      const found = this.runs.get(plan.runId);
      if (found === undefined || endedStatuses.includes(found.run.status)) continue;
      const step = found.evaluations.length + 1;
      const value = loss(plan.values, plan.seed, step);
      const best = found.evaluations.every((one) => one.loss > value);
      found.evaluations.push({ step, at: this.now, loss: value, best, metrics: { accuracy: 1 - value / 100 } });
      if (step === epochs) this.put(plan.runId, (run) => ({ ...run, status: "succeeded", finishedAt: this.now }));
    }
  }

  private put(runId: string, change: (run: Run) => Run): void {
    const found = this.runs.get(runId);
    if (found !== undefined) this.runs.set(runId, { ...found, run: change(found.run) });
  }
}
