/** Seconds from the start of a process, or from handing a run to a trainer that waits, to the first step: its end, and
 * its beginning. */
import { say } from "./environment.js";
import { runOurs, runPeer, type Setting } from "./sides.js";
import { type StartRow, startRow, type Times } from "./start-row.js";
import type { RunRecord } from "./statistics.js";

/**
 * The peer reads rows that are tokens already; ours tokenises them first when it starts cold. Warm is the second run of a
 * base in a project: rows are tokens, layers were compared, and the trainer that waits was told the base.
 */
export async function firstStepRows(setting: Setting, python: string, pairs: number): Promise<StartRow[]> {
  const { name, peer, defaults } = setting.work;
  // The trainer learns what a run needs through /proc: elsewhere it is not known when it is ready.
  const knowsReady = process.platform === "linux";
  // Not timed: the run of the same base that came before.
  if (knowsReady) await runOurs(setting, "warm");
  const runs: Record<"cold" | "warm" | "peer", Times[]> = { cold: [], warm: [], peer: [] };
  for (let pair = 0; pair < pairs; pair += 1) {
    runs.cold.push(timesOf(await runOurs(setting)));
    runs.peer.push(timesOf(await runPeer(setting, { python, flags: defaults, maxSteps: 1, evaluate: false })));
    if (knowsReady) runs.warm.push(timesOf(await runOurs(setting, "warm")));
    const seconds = Object.entries(runs).map(
      ([kind, times]) =>
        `${kind} ${times.at(-1)?.seconds.toFixed(2)} s (begun after ${times.at(-1)?.startUpSeconds?.toFixed(2)})`,
    );
    say(`  first step of ${name}, pair ${pair + 1}: ${seconds.join(", ")}`);
  }
  return (["cold", "warm"] as const).flatMap((start) =>
    runs[start].length === 0
      ? []
      : [startRow({ work: "first-step", of: name, start, peer, peer_flags: "defaults" }, runs[start], runs.peer)],
  );
}

const timesOf = ({ firstStepSeconds, startUpSeconds, peakRssBytes }: RunRecord): Times => ({
  seconds: firstStepSeconds,
  startUpSeconds,
  numTokens: null,
  peakRssBytes,
});
