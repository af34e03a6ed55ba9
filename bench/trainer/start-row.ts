/** A row for what happens around the steps: until the first one, and of a whole job. */
import { median } from "./statistics.js";

export interface StartRow {
  work: "first-step" | "job";
  /** The work, by its name among the others, whose first step or job it is. */
  of: string;
  /** Ours: a process started for the run, or one that the server kept ready. The peer has no other than cold. */
  start: "cold" | "warm";
  peer: string;
  peer_flags: "defaults" | "best";
  ratio: number;
  ratio_range: [number, number];
  rss_ratio: number | null;
  loss_rel_diff: null;
  roofline_fraction: null;
  tokens_per_s: number | null;
  peer_tokens_per_s: number | null;
  seconds: number;
  peer_seconds: number;
  /** Of these, those before the first step began; null for a job. */
  start_up_s: number | null;
  peer_start_up_s: number | null;
  pairs: number;
}

/** One measured pair. */
export interface Times {
  seconds: number;
  startUpSeconds: number | null;
  numTokens: number | null;
  peakRssBytes: number | null;
}

type Named = Pick<StartRow, "work" | "of" | "start" | "peer" | "peer_flags">;

export function startRow(named: Named, ours: readonly Times[], peers: readonly Times[]): StartRow {
  const ratios = ours.map((mine, index) => (peers[index] as Times).seconds / mine.seconds);
  const rss = (times: readonly Times[]): number | null => figure(times.map(({ peakRssBytes }) => peakRssBytes));
  const [mine, theirs] = [rss(ours), rss(peers)];
  const rate = (times: readonly Times[]): number | null =>
    figure(times.map(({ numTokens, seconds }) => (numTokens === null ? null : numTokens / seconds)));
  return {
    ...named,
    ratio: median(ratios),
    ratio_range: [Math.min(...ratios), Math.max(...ratios)],
    rss_ratio: mine === null || theirs === null ? null : mine / theirs,
    loss_rel_diff: null,
    roofline_fraction: null,
    tokens_per_s: rate(ours),
    peer_tokens_per_s: rate(peers),
    seconds: median(ours.map(({ seconds }) => seconds)),
    peer_seconds: median(peers.map(({ seconds }) => seconds)),
    start_up_s: figure(ours.map(({ startUpSeconds }) => startUpSeconds)),
    peer_start_up_s: figure(peers.map(({ startUpSeconds }) => startUpSeconds)),
    pairs: ours.length,
  };
}

function figure(values: readonly (number | null)[]): number | null {
  const known = values.filter((value) => value !== null);
  return known.length === values.length ? median(known) : null;
}

export const startLine = (row: StartRow): string =>
  `${row.work} of ${row.of}, ${row.start}, against ${row.peer} (${row.peer_flags}): ${row.ratio.toFixed(2)}x ` +
  `[${row.ratio_range.map((one) => one.toFixed(2)).join("-")}], ${row.seconds.toFixed(2)} and ${row.peer_seconds.toFixed(2)} s, ` +
  `memory ${row.rss_ratio === null ? "?" : `${row.rss_ratio.toFixed(2)}x`}`;
