/**
 * Our trainer beside the engines people use, on the same rows, weights and first adapter, alternating runs.
 *
 *   npm run bench -- trainer [--json] [--only WORK] [--pairs 5] [--steps N] [--threads N] [--probe-steps N]
 *                            [--held-out 32] [--peer-flags defaults|best] [--rows N]
 *
 * For each work and each of the peer's two settings (its defaults, and the fastest of its documented flags, found by
 * trying them) the runs go ours, peer, ours, peer ... and the medians are compared. One more run of the peer, not timed,
 * reads our batches in our order: its losses are compared with ours step by step. Measure on an idle machine: anything
 * beside it makes thread barriers wait.
 */
import { rmSync } from "node:fs";
import { availableParallelism } from "node:os";
import { parseArgs } from "node:util";
import { aroundSteps, aroundWorks } from "./trainer/around.js";
import { describeMachine, type Machine, peersPython, say } from "./trainer/environment.js";
import { prepare } from "./trainer/prepare.js";
import { runOurs, runPeer, type Setting } from "./trainer/sides.js";
import { startLine } from "./trainer/start-row.js";
import {
  heldOutDifference,
  lossDifference,
  lossesOf,
  median,
  type RunRecord,
  tokensPerSecond,
} from "./trainer/statistics.js";
import { vectorsDifference } from "./trainer/vectors.js";
import { type Flags, hyperparametersOf, type Work, works } from "./trainer/works.js";

interface Options {
  pairs: number;
  steps: number | null;
  probeSteps: number;
  heldOut: number;
  kinds: readonly Row["peer_flags"][];
}

interface Row {
  work: string;
  rows: string;
  peer: string;
  peer_flags: "defaults" | "best";
  flags: Flags;
  ratio: number;
  ratio_range: [number, number];
  rss_ratio: number;
  /** The largest difference of any step or of the held-out loss, on the same batches with the same flags. */
  loss_rel_diff: number;
  /** Of the timed pairs: the peer may have seen the rows in an order of its own. */
  held_out_rel_diff: number | null;
  same_batches: boolean;
  /** Of each step, on the same batches. */
  losses: { ours: number[]; peer: number[] };
  tokens_per_s: number;
  peer_tokens_per_s: number;
  rss_bytes: number;
  peer_rss_bytes: number;
  first_step_s: number;
  peer_first_step_s: number;
  wall_s: number;
  peer_wall_s: number;
  /** Of the model that we saved: our server's vectors beside those that the peer makes. Null for other tasks. */
  vectors_max_diff: number | null;
  /** Null where no product stands between a token and the answer. */
  roofline_fraction: number | null;
  pairs: number;
  steps: number;
  rows_per_step: number;
}

/** The peer's flag that gives it our batches in our order: its file of rows lies in it. */
const ourOrder = { train_sampling_strategy: "sequential" } as const;

/** Of two number types, one whose products reach less than this share of the other's: no flag makes up for it. */
const hopelessShare = 1 / 2;

/** As our trainer chooses it, by the same rule, but once for all runs of a comparison. */
const dtypeFor = ({ gflops }: Machine): "bfloat16" | "float32" =>
  gflops.bfloat16 >= 1.3 * gflops.float32 ? "bfloat16" : "float32";

/**
 * The flags with which the peer is fastest. `probeSteps`: 0 is the whole run. Rows that are grouped by length begin with
 * the longest, so that a few steps speak against grouping.
 */
async function bestFlags({ setting, python }: Side, probeSteps: number, { gflops }: Machine): Promise<Flags> {
  const rates: { flags: Flags; rate: number }[] = [];
  for (const flags of setting.work.candidates) {
    const [own, other] = flags["bf16"] === true ? [gflops.bfloat16, gflops.float32] : [gflops.float32, gflops.bfloat16];
    if (own < other * hopelessShare) {
      say(
        `  not probed: ${JSON.stringify(flags)}; bf16 products reach ${gflops.bfloat16.toFixed(0)} GFLOP/s here, fp32 ${gflops.float32.toFixed(0)}`,
      );
      continue;
    }
    const probe = await runPeer(setting, { python, flags, maxSteps: probeSteps, evaluate: false });
    rates.push({ flags, rate: tokensPerSecond(probe) });
    say(`  probe ${JSON.stringify(flags)}: ${rates.at(-1)?.rate.toFixed(0)} tokens/s`);
  }
  const best = rates.reduce((one, other) => (other.rate > one.rate ? other : one));
  return best.flags;
}

interface Side {
  setting: Setting;
  /** The peers' interpreter. */
  python: string;
}

interface Comparison extends Side {
  kind: Row["peer_flags"];
  flags: Flags;
}

const describeRows = ({ task, lengths, targetLengths }: Work): string =>
  `${lengths.least} to ${lengths.most} tokens, ${lengths.mean} in the middle${targetLengths === null ? "" : `; ${task === "embedding" ? "beside" : "written"} ${targetLengths.mean}`}`;

/** Index of the step from whose end the rate counts. */
const ratedFrom = (work: Work, { steps }: RunRecord): number =>
  work.ratedFrom === "step" ? 0 : steps.length / hyperparametersOf(work).num_train_epochs - 1;

async function compare({ setting, python, kind, flags }: Comparison, pairs: number, machine: Machine): Promise<Row> {
  const { work } = setting;
  const sameBatches = flags["train_sampling_strategy"] === ourOrder.train_sampling_strategy;
  const [ours, peers]: [RunRecord[], RunRecord[]] = [[], []];
  const differences: number[] = [];
  for (let pair = 0; pair < pairs; pair += 1) {
    const [mine, theirs] = [
      await runOurs(setting),
      await runPeer(setting, { python, flags, maxSteps: 0, evaluate: true }),
    ];
    ours.push(mine);
    peers.push(theirs);
    const difference = heldOutDifference(mine, theirs);
    if (difference !== null) differences.push(difference);
    say(
      `  ${work.name}, ${kind}, pair ${pair + 1}: ${tokensPerSecond(mine, ratedFrom(work, mine)).toFixed(0)} and ${tokensPerSecond(theirs, ratedFrom(work, theirs)).toFixed(0)} tokens/s, held-out losses ${difference === null ? "not compared" : `within ${(100 * difference).toFixed(3)} %`}`,
    );
  }
  // Not timed: the peer with the same flags on our batches in our order, so that each step can be compared.
  const matched = sameBatches
    ? (peers[0] as RunRecord)
    : await runPeer(setting, { python, flags: { ...flags, ...ourOrder }, maxSteps: 0, evaluate: true });
  const rateOf = (one: RunRecord): number => tokensPerSecond(one, ratedFrom(work, one));
  const ratios = ours.map((mine, index) => rateOf(mine) / rateOf(peers[index] as RunRecord));
  const of = (records: RunRecord[], figure: (one: RunRecord) => number): number => median(records.map(figure));
  const rate = of(ours, rateOf);
  const roof = Math.max(machine.gflops.float32, machine.gflops.bfloat16) * 1e9;
  return {
    work: work.kind,
    rows: describeRows(work),
    peer: work.peer,
    peer_flags: kind,
    flags,
    ratio: median(ratios),
    ratio_range: [Math.min(...ratios), Math.max(...ratios)],
    rss_ratio: of(ours, (one) => one.peakRssBytes) / of(peers, (one) => one.peakRssBytes),
    loss_rel_diff: lossDifference(ours[0] as RunRecord, matched, hyperparametersOf(work).num_train_epochs),
    held_out_rel_diff: differences.length === 0 ? null : Math.max(...differences),
    same_batches: sameBatches,
    losses: { ours: lossesOf(ours[0] as RunRecord), peer: lossesOf(matched) },
    vectors_max_diff: work.task === "embedding" ? await vectorsDifference(setting, python) : null,
    tokens_per_s: rate,
    peer_tokens_per_s: of(peers, rateOf),
    rss_bytes: of(ours, (one) => one.peakRssBytes),
    peer_rss_bytes: of(peers, (one) => one.peakRssBytes),
    first_step_s: of(ours, (one) => one.firstStepSeconds),
    peer_first_step_s: of(peers, (one) => one.firstStepSeconds),
    wall_s: of(ours, (one) => one.wallSeconds),
    peer_wall_s: of(peers, (one) => one.wallSeconds),
    roofline_fraction: work.passes === 0 ? null : (rate * 2 * work.productWeights * work.passes) / roof,
    pairs,
    steps: ours[0]?.steps.length ?? 0,
    rows_per_step: work.rowsPerStep,
  };
}

async function rowsOf(side: Side, options: Options, machine: Machine): Promise<Row[]> {
  const rows: Row[] = [];
  const { work } = side.setting;
  for (const kind of options.kinds) {
    const flags = kind === "defaults" ? work.defaults : await bestFlags(side, options.probeSteps, machine);
    rows.push(await compare({ ...side, kind, flags }, options.pairs, machine));
  }
  return rows;
}

const usage = `npm run bench -- trainer [--json] [--only WORK] [--pairs 5] [--steps N] [--threads N] [--probe-steps N]
                         [--held-out 32] [--peer-flags defaults|best] [--rows N]
Rows in a step are the work's own (8 or 32) unless --rows says less: for settings that take minutes a row. The peer's best flags are those
with which a whole run is fastest, or with --probe-steps its first N steps (2 or more).`;

function print(rows: Row[], machine: Machine): void {
  const { float32, bfloat16 } = machine.gflops;
  console.log(
    `${machine.cpu}, ${machine.threads} threads; products: fp32 ${float32.toFixed(0)}, bf16 ${bfloat16.toFixed(0)} GFLOP/s`,
  );
  for (const row of rows)
    console.log(
      `${row.work} (${row.rows}) against ${row.peer} (${row.peer_flags}${row.same_batches ? ", our batches" : ""}): ${row.ratio.toFixed(2)}x [${row.ratio_range.map((one) => one.toFixed(2)).join("-")}], ` +
        `${row.tokens_per_s.toFixed(0)} and ${row.peer_tokens_per_s.toFixed(0)} tokens/s, memory ${row.rss_ratio.toFixed(2)}x, ` +
        `first step ${row.first_step_s.toFixed(1)} and ${row.peer_first_step_s.toFixed(1)} s, losses within ${(100 * row.loss_rel_diff).toFixed(3)} %`,
    );
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      json: { type: "boolean", default: false },
      help: { type: "boolean", short: "h", default: false },
      only: { type: "string" },
      pairs: { type: "string", default: "5" },
      steps: { type: "string" },
      threads: { type: "string", default: String(availableParallelism()) },
      "peer-flags": { type: "string" },
      "probe-steps": { type: "string", default: "0" },
      "held-out": { type: "string", default: "32" },
      rows: { type: "string" },
    },
  });
  const chosen = works
    .filter((work) => values.only === undefined || work.name === values.only || work.kind === values.only)
    .map((work) => (values.rows === undefined ? work : { ...work, rowsPerStep: Number(values.rows) }));
  const around = values.only === undefined || aroundWorks.some((name) => name === values.only);
  if (values.help || (chosen.length === 0 && !around)) {
    say(`${usage}\nWORK is one of ${[...works.map((work) => work.name), ...aroundWorks].join(", ")}.`);
    process.exitCode = values.help ? 0 : 2;
    return;
  }
  const steps = values.steps === undefined ? null : Number(values.steps);
  const options = {
    pairs: Number(values.pairs),
    steps,
    probeSteps: Number(values["probe-steps"]),
    heldOut: Number(values["held-out"]),
    kinds: (["defaults", "best"] as const).filter((kind) => (values["peer-flags"] ?? kind) === kind),
  };
  const python = await peersPython();
  const machine = await describeMachine(Number(values.threads));
  const rows: Row[] = [];
  for (const work of chosen) {
    say(`${work.name}: writing rows and weights`);
    const setting = { ...(await prepare(work, { ...options, numThreads: machine.threads })), dtype: dtypeFor(machine) };
    try {
      rows.push(...(await rowsOf({ setting, python }, options, machine)));
    } finally {
      rmSync(setting.folder, { recursive: true, force: true });
    }
  }
  const { gflops, threads: numThreads } = machine;
  const startRows = await aroundSteps(values.only, { python, pairs: options.pairs, gflops, numThreads });
  if (values.json) console.log(JSON.stringify({ bench: "trainer", machine, rows: [...rows, ...startRows] }));
  else print(rows, machine);
  if (!values.json) for (const row of startRows) console.log(startLine(row));
}

await main();
