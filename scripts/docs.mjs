/**
 * `npm run docs`: writes the pages that are made from facts.
 *
 *   docs/errors.md  from the error catalogue, packages/contract/src/errors.ts
 *
 * `--check` writes nothing and ends with 1 when a page is out of date.
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { errorCatalogue, errorType } from "../packages/contract/src/errors.ts";

const root = join(import.meta.dirname, "..");
const at = (path) => join(root, path);

/** The page of docs/errors.md. */
export function errorsPage() {
  const rows = Object.entries(errorCatalogue).map(([code, { status, retry, meaning, fix }]) =>
    [
      `## ${code}`,
      "",
      `HTTP ${status} · type \`${errorType(status)}\` · ${retry ? "trying again can help" : "trying again gives the same"}`,
      "",
      meaning,
      "",
      `**What to do:** ${fix}`,
      "",
    ].join("\n"),
  );
  const head = [
    "# Errors",
    "",
    'Every refusal Fettle can utter. On the wire it is OpenAI\'s shape: `{"error": {"message", "type", "param", "code"}}`;',
    "`code` is one of these, and `x-should-retry` says whether sending the request again can help.",
    "",
    "Made from `packages/contract/src/errors.ts` by `npm run docs`.",
    "",
  ];
  return `${[...head, ...rows].join("\n").trimEnd()}\n`;
}

function pages() {
  return { "docs/errors.md": errorsPage() };
}

function main(argv) {
  let stale = 0;
  for (const [path, text] of Object.entries(pages())) {
    if (existsSync(at(path)) && readFileSync(at(path), "utf8") === text) continue;
    stale += 1;
    if (argv.includes("--check")) console.log(`${path} is out of date: run \`npm run docs\` and commit it`);
    else writeFileSync(at(path), text);
  }
  return argv.includes("--check") && stale > 0 ? 1 : 0;
}

if (process.argv[1] === import.meta.filename) process.exitCode = main(process.argv.slice(2));
