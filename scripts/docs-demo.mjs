/** What README.md shows of a saved `npm run demo -- --json`. */

const numberOf = (value) => (typeof value === "number" ? value : typeof value?.value === "number" ? value.value : null);
const figure = (value) => (Number.isInteger(value) && Math.abs(value) > 1 ? String(value) : value.toFixed(3));
const words = (name) => name.replaceAll("_", " ");

/** One row a candidate, one column for each figure that all of them have. */
function table(results) {
  const candidates = Object.entries(results);
  const [, first = {}] = candidates[0] ?? [];
  const names = Object.keys(first).filter((name) => candidates.every(([, one]) => numberOf(one?.[name]) !== null));
  const row = ([candidate, one]) =>
    `| ${words(candidate)} | ${names.map((name) => figure(numberOf(one[name]))).join(" | ")} |`;
  return [
    `|  | ${names.map(words).join(" | ")} |`,
    `|---|${names.map(() => "--:").join("|")}|`,
    ...candidates.map(row),
  ];
}

const shortened = (text) => (text.length > 300 ? `${text.slice(0, 300)} ...` : text).replaceAll("```", "'''");

function part(report) {
  const times = Object.entries(report.seconds).map(([name, seconds]) => `${words(name)} ${seconds.toFixed(0)} s`);
  return [
    `**${report.part}**: \`${report.base_model}\`, ${report.rows.train} rows to train, ${report.rows.test} held out; ${times.join(", ")}.`,
    "",
    ...table(report.results),
    "",
    report.verdict,
    "",
    "```text",
    `> ${shortened(report.example.request).replaceAll("\n", "\n> ")}`,
    shortened(report.example.answer),
    "```",
    "",
  ];
}

/** Addresses and folders of the machine it ran on say nothing elsewhere. */
export function withoutMachine({ url: _url, home: _home, ...demo }) {
  return demo;
}

/** Markdown of a whole run. */
export function demoBlock({ seconds, parts, machine }) {
  const total = `${seconds.total.toFixed(0)} s altogether, of which ${seconds.downloads.toFixed(0)} s fetching models`;
  const where = machine === undefined ? "" : ` on ${machine}`;
  const head = [`One real run${where}: ${total}. Printed by \`npm run demo -- --json\`.`, ""];
  return [...head, ...parts.flatMap(part)].join("\n").trimEnd();
}
