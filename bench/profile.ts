/**
 * Where the time of a training step goes, by the layer that asks for it and the kind of operation.
 *
 *   npm run bench -- profile [--json] [--only WORK] [--threads N]
 *
 * The trainer runs as it always does, four of its steps under PyTorch's profiler, which makes them a little slower: the
 * shares count, and both times are printed. Measure on an idle machine.
 */
import { rmSync } from "node:fs";
import { availableParallelism } from "node:os";
import { parseArgs } from "node:util";
import { describeMachine, say } from "./trainer/environment.js";
import { prepare } from "./trainer/prepare.js";
import { profileOurs, type StepProfile } from "./trainer/sides.js";
import { works } from "./trainer/works.js";

const profiledSteps = 12;

interface Row extends StepProfile {
  work: string;
}

function print({ work, parts, ...row }: Row): void {
  const milliseconds = (seconds: number): string => `${((1000 * seconds) / row.steps).toFixed(0)} ms`;
  console.log(
    `${work}: ${(row.tokens / row.steps).toFixed(0)} tokens a step, ${milliseconds(row.plain_seconds)}; under the profiler ${milliseconds(row.seconds)}`,
  );
  for (const { part, kind, seconds } of [...parts].sort((a, b) => b.seconds - a.seconds))
    console.log(`  ${((100 * seconds) / row.seconds).toFixed(1).padStart(5)} %  ${part}, ${kind}`);
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      json: { type: "boolean", default: false },
      help: { type: "boolean", short: "h", default: false },
      only: { type: "string" },
      threads: { type: "string", default: String(availableParallelism()) },
    },
  });
  // A head's features are computed before its steps: there is nothing to look at.
  const known = works.filter(({ method }) => method !== "head");
  const chosen = known.filter(({ name }) => values.only === undefined || name === values.only);
  if (values.help || chosen.length === 0) {
    say(
      `npm run bench -- profile [--json] [--only WORK] [--threads N]; WORK is one of ${known.map(({ name }) => name).join(", ")}.`,
    );
    return values.help ? 0 : 2;
  }
  const machine = await describeMachine(Number(values.threads));
  const rows: Row[] = [];
  for (const work of chosen) {
    const setting = await prepare(work, { steps: profiledSteps, heldOut: 2, numThreads: machine.threads });
    try {
      rows.push({ work: work.name, ...(await profileOurs(setting)) });
    } finally {
      rmSync(setting.folder, { recursive: true, force: true });
    }
  }
  if (values.json) console.log(JSON.stringify({ bench: "profile", machine, rows }));
  else for (const row of rows) print(row);
  return 0;
}

process.exitCode = await main();
