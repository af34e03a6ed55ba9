/** Tables and pictures of saved benchmarks (docs/bench.json): pure, the same text for the same figures. */
import * as vega from "vega";
import { compile } from "vega-lite";

const names = {
  "decoder-lora": "decoder, LoRA",
  "decoder-full": "decoder, full",
  encoder: "encoder",
  seq2seq: "T5, full",
  head: "encoder, head",
  embeddings: "embeddings",
};

const percent = (part) => `${(100 * part).toFixed(part < 0.001 ? 3 : 2)} %`;
const number = (value) => (value >= 100 ? Math.round(value).toLocaleString("en-US") : value.toFixed(1));
const gigabytes = (bytes) => (bytes / 1e9).toFixed(2);
const range = ([low, high]) => `[${low.toFixed(2)}, ${high.toFixed(2)}]`;
const isRate = ({ work }) => work !== "first-step" && work !== "job";
/** Works of one kind differ in their rows. */
const titled = (row) => `${names[row.work] ?? row.work}${row.rows.startsWith("20 to 500") ? ", mails" : ""}`;
const flagged = ({ flags }) =>
  Object.entries(flags)
    .map(([name, value]) => (typeof value === "string" ? value : value === true ? name : `no ${name}`))
    .join(", ");

const table = (head, rows) =>
  [head, head.map((_, index) => (index < 2 ? "---" : "--:")), ...rows]
    .map((cells) => `| ${cells.join(" | ")} |`)
    .join("\n");

function rateTable(rows) {
  const head = [
    "work",
    "peer, flags",
    "ours, tokens/s",
    "peer",
    "ratio",
    "memory, GB",
    "peer",
    "first step, s",
    "peer",
    "of the roofline",
    "losses within",
  ];
  const line = (row) => [
    titled(row),
    `${row.peer_flags}${flagged(row) === "" ? "" : `: ${flagged(row)}`}`,
    number(row.tokens_per_s),
    number(row.peer_tokens_per_s),
    `**${row.ratio.toFixed(2)}** ${range(row.ratio_range)}`,
    gigabytes(row.rss_bytes),
    `${gigabytes(row.peer_rss_bytes)} (${row.rss_ratio.toFixed(2)})`,
    row.first_step_s.toFixed(1),
    row.peer_first_step_s.toFixed(1),
    row.roofline_fraction === null ? "–" : row.roofline_fraction.toFixed(2),
    percent(row.loss_rel_diff),
  ];
  return table(head, rows.map(line));
}

function startTable(rows) {
  const what = (row) =>
    row.work === "job" ? "a job of 1,000 rows through the API" : `first step of ${names[row.of] ?? row.of}`;
  const line = (row) => [
    what(row),
    `${row.start} against ${row.peer_flags}`,
    row.seconds.toFixed(2),
    row.peer_seconds.toFixed(2),
    row.start_up_s == null ? "–" : `${row.start_up_s.toFixed(2)} and ${row.peer_start_up_s.toFixed(2)}`,
    `**${row.ratio.toFixed(2)}** ${range(row.ratio_range)}`,
  ];
  return table(
    ["what", "ours and the peer's flags", "ours, s", "peer, s", "before the step begins, s", "ratio"],
    rows.map(line),
  );
}

/** Parts by kinds, in shares of the time of a step. */
function profileTable({ parts, seconds }) {
  const share = (chosen) => {
    const sum = parts.filter(chosen).reduce((total, one) => total + one.seconds, 0) / seconds;
    return sum < 0.0005 ? "" : `${(100 * sum).toFixed(1)}`;
  };
  const kinds = [...new Set(parts.map(({ kind }) => kind))].sort(
    (a, b) => total(parts, "kind", b) - total(parts, "kind", a),
  );
  const layers = [...new Set(parts.map(({ part }) => part))].sort(
    (a, b) => total(parts, "part", b) - total(parts, "part", a),
  );
  return table(
    ["% of a step", "all", ...kinds],
    [
      ...layers.map((layer) => [
        layer,
        share(({ part }) => part === layer),
        ...kinds.map((wanted) => share(({ part, kind }) => part === layer && kind === wanted)),
      ]),
      ["all", "100", ...kinds.map((wanted) => share(({ kind }) => kind === wanted))],
    ],
  );
}

function memoryTable(rows) {
  const line = (row) => [
    `${row.work}${row.held_out ? " (the prediction was not set by it)" : ""}`,
    row.dtype === "float32" ? "fp32" : "bf16",
    Object.entries(row.parts)
      .map(([part, bytes]) => `${part} ${gigabytes(bytes)}`)
      .join(", "),
    gigabytes(row.predicted_bytes),
    gigabytes(row.peak_bytes),
    `${row.difference > 0 ? "+" : ""}${(100 * row.difference).toFixed(1)} %`,
  ];
  return table(["run", "products in", "predicted parts, GB", "predicted", "measured", "difference"], rows.map(line));
}

const total = (parts, key, value) =>
  parts.filter((one) => one[key] === value).reduce((sum, { seconds }) => sum + seconds, 0);

const machineOf = ({ cpu, threads, memory_bytes, gflops }) =>
  `${threads} cores of ${cpu}, ${Math.round(memory_bytes / 1e9)} GB; products reach ${Math.round(gflops.float32)} GFLOP/s in fp32, ${Math.round(gflops.bfloat16)} in bf16`;

/** Each machine with the rows measured on it; that of most rows comes first. */
function machineLines(rows) {
  const measuredOn = (machine) => rows.filter((row) => machineOf(row.machine) === machine);
  const [most, ...others] = [...new Set(rows.map(({ machine }) => machineOf(machine)))].sort(
    (a, b) => measuredOn(b).length - measuredOn(a).length,
  );
  const named = (row) => `${names[row.work] ?? row.work}, ${row.peer_flags}`;
  const namedOn = (machine) => [...new Set(measuredOn(machine).map(named))];
  return [
    `Machine: ${most} (in the newest run there; a share of the roofline is of its own run).`,
    ...others.map((machine) => `In another run, on ${machine}: ${namedOn(machine).join("; ")}.`),
  ];
}

const fewestPairs = (rows) => Math.min(...rows.map(({ pairs }) => pairs));

/** The block of docs/performance.md. */
export function benchBlock({ trainer, profile, memory }) {
  const rates = trainer.rows.filter(isRate);
  const starts = trainer.rows.filter((row) => !isRate(row));
  const peers = [...new Set(rates.map(({ peer }) => peer))].join("; ");
  return [
    ...machineLines(trainer.rows),
    `Peers: ${peers}. Median of ${fewestPairs(rates)} alternating pairs or more (first steps: ${fewestPairs(starts)}); range in brackets.`,
    "",
    rateTable(rates),
    "",
    "![How many times as fast](pictures/ratios.svg)",
    "![Losses on the same batches](pictures/losses.svg)",
    "",
    ...(starts.length === 0 ? [] : [startTable(starts), ""]),
    ...(profile?.rows ?? []).flatMap((row) => [
      `Where a step goes, ${names[row.work] ?? row.work} (\`npm run bench -- profile\`): ${Math.round(row.tokens / row.steps)} tokens, ${Math.round((1000 * row.plain_seconds) / row.steps)} ms; under the profiler ${Math.round((1000 * row.seconds) / row.steps)}.`,
      "",
      profileTable(row),
      "",
    ]),
    ...(memory === undefined
      ? []
      : [
          "Memory of a run, told before its first step, beside the peak of its process (`npm run bench -- memory`):",
          "",
          memoryTable(memory.rows),
        ]),
  ]
    .join("\n")
    .trimEnd();
}

const config = {
  background: "white",
  font: "sans-serif",
  axis: { labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
  legend: { labelFontSize: 12, titleFontSize: 12 },
  view: { stroke: null },
};
const colour = (domain) => ({ domain, range: ["#0b6e4f", "#d1495b"] });

function ratiosChart(rates) {
  const values = rates.map((row) => ({
    work: titled(row),
    flags: row.peer_flags === "best" ? "its best flags" : "its defaults",
    ratio: row.ratio,
    low: row.ratio_range[0],
    high: row.ratio_range[1],
    text: `${row.ratio.toFixed(1)}x`,
  }));
  const y = { field: "work", type: "nominal", sort: [...new Set(values.map(({ work }) => work))], title: null };
  const x = {
    type: "quantitative",
    scale: { type: "log", domainMin: 0.8 },
    title: "tokens per second, times the peer's",
  };
  const yOffset = { field: "flags" };
  const color = {
    field: "flags",
    scale: colour(["its best flags", "its defaults"].filter((kind) => values.some(({ flags }) => flags === kind))),
    legend: { title: "the peer with", orient: "top" },
  };
  return {
    width: 520,
    height: { step: 22 },
    data: { values },
    layer: [
      { mark: { type: "rule", strokeDash: [4, 3], color: "#777" }, encoding: { x: { ...x, datum: 1 } } },
      {
        mark: { type: "bar", opacity: 0.85, height: { band: 0.8 } },
        encoding: { y, yOffset, color, x: { ...x, field: "ratio" }, x2: { datum: 1 } },
      },
      {
        mark: { type: "rule", strokeWidth: 1.5 },
        encoding: { y, yOffset, x: { ...x, field: "low" }, x2: { field: "high" } },
      },
      {
        mark: { type: "text", align: "left", dx: 8, fontSize: 12 },
        encoding: { y, yOffset, x: { ...x, field: "high" }, text: { field: "text" } },
      },
    ],
  };
}

function lossesChart(rates) {
  const values = rates
    .filter(({ peer_flags }) => peer_flags === "best")
    .flatMap((row) =>
      Object.entries(row.losses).flatMap(([side, losses]) =>
        losses.map((loss, index) => ({
          work: titled(row),
          side: side === "ours" ? "Fettle" : "the peer",
          step: index + 1,
          loss,
        })),
      ),
    );
  return {
    data: { values },
    facet: { field: "work", type: "nominal", sort: [...new Set(values.map(({ work }) => work))], title: null },
    columns: 3,
    resolve: { scale: { x: "independent", y: "independent" } },
    spec: {
      width: 210,
      height: 130,
      mark: { type: "line", strokeWidth: 2 },
      encoding: {
        x: { field: "step", type: "quantitative", title: "step", axis: { tickMinStep: 1, tickCount: 6, format: "d" } },
        y: { field: "loss", type: "quantitative", scale: { zero: false }, title: "loss" },
        color: { field: "side", scale: colour(["Fettle", "the peer"]), legend: { title: null, orient: "top" } },
        strokeDash: {
          field: "side",
          scale: {
            domain: ["Fettle", "the peer"],
            range: [
              [1, 0],
              [5, 4],
            ],
          },
          legend: null,
        },
      },
    },
  };
}

// It warns of what it settles well by itself.
const logger = vega.logger(vega.Error);

function drawn(chart) {
  const { spec } = compile({ ...chart, config }, { logger });
  return new vega.View(vega.parse(spec), { renderer: "none" }).toSVG();
}

/** Path below docs/ to SVG. */
export async function benchPictures({ trainer }) {
  const rates = trainer.rows.filter(isRate);
  return {
    "pictures/ratios.svg": await drawn(ratiosChart(rates)),
    "pictures/losses.svg": await drawn(lossesChart(rates)),
  };
}

const keyOf = (row) => [row.work, row.of, row.start, row.rows, row.peer_flags, row.dtype].join("|");

/** `saved` with what a benchmark printed just now: its rows take the place of those of the same work. */
export function withBench(saved, { bench, machine, rows }) {
  const before = saved[bench]?.rows ?? [];
  const kept = before.filter((row) => !rows.some((one) => keyOf(one) === keyOf(row)));
  return { ...saved, [bench]: { rows: [...kept, ...rows.map((row) => ({ ...row, machine }))] } };
}
