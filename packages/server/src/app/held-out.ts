/** Looks at all rows of a run once, and holds some out for validation when no file was given for that. */
import { createHash, type Hash } from "node:crypto";
import type { CanonicalRow } from "@fettle/contract";
import { AppError } from "../domain/error.js";
import type { Fold, Run } from "../domain/job.js";
import { approximateTokens, splitKey } from "../domain/row-facts.js";
import { foldsOf, holdOut } from "../domain/split.js";
import { parseRow, rowLines } from "./row-lines.js";
import type { Blobs } from "./ports.js";

export interface RowFacts {
  numTrainRows: number;
  numValidationRows: number;
  /** Approximate; of the rows to train on. */
  numTrainTokens: number;
  longestRow: number;
  /** Rows of the validation file that ask what a training row asks too. */
  numLeaked: number;
  /** Classes of the rows to train on. */
  labels: Record<string, number>;
  /** Of scored rows to train on. */
  scores?: { mean: number; std: number };
}

/** Written last, so that a split is whole when this is there. */
export interface HeldOut extends RowFacts {
  /** Of the files to train on, one after the other. */
  train_sha256: string;
  /** Their names in the folder `rows`; absent: train.jsonl. */
  train_files?: string[];
}

const heldOutKey = (runId: string): string => `runs/${runId}/rows/held-out.json`;
export const trainRowsKeys = (runId: string, { train_files = ["train.jsonl"] }: HeldOut): string[] =>
  train_files.map((name) => `runs/${runId}/rows/${name}`);
export const validationRowsKey = (runId: string): string => `runs/${runId}/rows/validation.jsonl`;

const fraction = 0.1;
const maxHeldOutRows = 1000;
/** With fewer rows all are needed to learn from. */
const minRowsToSplit = 10;

/** The split made for this run; null when none was made. */
export async function readHeldOut(blobs: Pick<Blobs, "get">, runId: string): Promise<HeldOut | null> {
  const bytes = await blobs.get(heldOutKey(runId));
  if (bytes === null) return null;
  const parts: Uint8Array[] = [];
  for await (const part of bytes) parts.push(part);
  return JSON.parse(Buffer.concat(parts).toString("utf8")) as HeldOut;
}

/** The same rows and split give the same files. Running it again writes the same bytes. */
export async function surveyRows(
  blobs: Blobs,
  run: Pick<Run, "id" | "trainingFile" | "validationFile" | "seed" | "split">,
): Promise<RowFacts> {
  const pass = await firstPass(blobs, run.trainingFile);
  if (run.validationFile !== null) {
    const { numLeaked, numValidationRows } = await leaks(blobs, run.validationFile, pass.keys);
    return { ...pass.facts(() => true), numValidationRows, numLeaked };
  }
  const seed = run.split?.seed ?? run.seed;
  const parts = run.split?.fold ? foldParts(pass, run.split.fold, seed) : tenthParts(pass, seed);
  const numValidationRows = parts.of.reduce((sum, part) => sum + (part === parts.held ? 1 : 0), 0);
  const facts = { ...pass.facts((row) => parts.of[row] !== parts.held), numValidationRows, numLeaked: 0 };
  if (numValidationRows > 0) await writeParts(blobs, run, { parts, facts });
  return facts;
}

/** A file each. */
interface Parts {
  /** Of each row. */
  of: Uint8Array;
  held: number;
  train: { part: number; name: string }[];
}

function tenthParts({ keys, strata }: FirstPass, seed: number): Parts {
  const train = [{ part: 0, name: "train.jsonl" }];
  if (keys.length < minRowsToSplit) return { of: new Uint8Array(keys.length), held: 1, train };
  return { of: holdOut({ keys, strata: strata(), fraction, maxRows: maxHeldOutRows, seed }), held: 1, train };
}

/**
 * A file for each fold: whichever run of the cross-validation holds one out, its files have the same bytes, so that
 * what one run has tokenised is there for the others.
 */
function foldParts({ keys, strata }: FirstPass, { number, of: folds }: Fold, seed: number): Parts {
  const different = new Set(keys).size;
  if (different < folds) throw new AppError("too_few_rows", tooFewForFolds(different, folds), { param: "folds" });
  const others = Array.from({ length: folds }, (_, part) => part).filter((part) => part !== number);
  return {
    of: foldsOf({ keys, strata: strata(), folds, seed }),
    held: number,
    train: others.map((part) => ({ part, name: `fold-${part}.jsonl` })),
  };
}

export const tooFewForFolds = (different: number, folds: number): string =>
  `The training file has ${different} different rows, those of one group or with the same question counted as one: expected at least one for each of ${folds} folds. Ask for fewer folds, or add rows.`;

async function writeParts(
  blobs: Blobs,
  run: Pick<Run, "id" | "trainingFile">,
  { parts, facts }: { parts: Parts; facts: RowFacts },
): Promise<void> {
  const linesOf = (part: number): AsyncIterable<Uint8Array> =>
    linesWhere(blobs, run.trainingFile, (row) => parts.of[row] === part);
  await blobs.put(validationRowsKey(run.id), linesOf(parts.held));
  const hash = createHash("sha256");
  const note: HeldOut = { ...facts, train_sha256: "", train_files: parts.train.map(({ name }) => name) };
  const keys = trainRowsKeys(run.id, note);
  for (const [at, { part }] of parts.train.entries()) await blobs.put(keys[at] ?? "", hashed(linesOf(part), hash));
  await blobs.put(heldOutKey(run.id), once(Buffer.from(JSON.stringify({ ...note, train_sha256: hash.digest("hex") }))));
}

async function* hashed(bytes: AsyncIterable<Uint8Array>, hash: Hash): AsyncIterable<Uint8Array> {
  for await (const piece of bytes) {
    hash.update(piece);
    yield piece;
  }
}

interface FirstPass {
  keys: number[];
  strata: () => number[];
  facts: (
    kept: (row: number) => boolean,
  ) => Pick<RowFacts, "numTrainRows" | "numTrainTokens" | "longestRow" | "labels" | "scores">;
}

async function firstPass(blobs: Blobs, fileId: string): Promise<FirstPass> {
  const keys: number[] = [];
  const tokens: number[] = [];
  const labelOf: number[] = [];
  const more = new Map<string, number[]>();
  const scores: number[] = [];
  const labelIds = new Map<string, number>();
  for await (const line of rowLines(blobs, fileId)) {
    const row = parseRow(line);
    keys.push(splitKey(row));
    tokens.push(approximateTokens(row));
    labelOf.push(idOf(row, labelIds));
    for (const name of labelsIn(row)) {
      const rows = more.get(name);
      if (rows === undefined) more.set(name, [keys.length - 1]);
      else rows.push(keys.length - 1);
    }
    if ("score" in row) scores.push(row.score);
  }
  const names = [...labelIds.keys()];
  return {
    keys,
    // Classes are numbered by name, not by first sight: the order of the rows must not change the split.
    strata: () => {
      const rank = new Map([...names].sort().map((name, index) => [labelIds.get(name) ?? 0, index]));
      return labelOf.map((id) => rank.get(id) ?? 0);
    },
    facts: (kept) => {
      const counts = new Array<number>(names.length).fill(0);
      let [numTrainRows, numTrainTokens, longestRow] = [0, 0, 0];
      tokens.forEach((count, row) => {
        longestRow = Math.max(longestRow, count);
        if (!kept(row)) return;
        numTrainRows += 1;
        numTrainTokens += count;
        const label = labelOf[row] ?? -1;
        if (label >= 0) counts[label] = (counts[label] ?? 0) + 1;
      });
      return {
        numTrainRows,
        numTrainTokens,
        longestRow,
        labels: {
          ...Object.fromEntries(names.map((name, id) => [name, counts[id] ?? 0])),
          ...Object.fromEntries([...more].map(([name, rows]) => [name, rows.filter(kept).length])),
        },
        ...(scores.length > 0 && { scores: spread(scores.filter((_, row) => kept(row))) }),
      };
    },
  };
}

/** Labels of which a row may have several. */
function labelsIn(row: CanonicalRow): Set<string> {
  if ("labels" in row) return new Set(row.labels);
  return new Set("entities" in row ? row.entities.map(({ label }) => label) : []);
}

/** All the same: 1, so that nothing is divided by 0. */
function spread(scores: readonly number[]): { mean: number; std: number } {
  const count = Math.max(1, scores.length);
  const mean = scores.reduce((sum, one) => sum + one / count, 0);
  const std = Math.sqrt(scores.reduce((sum, one) => sum + (one - mean) ** 2 / count, 0));
  return { mean, std: std > 0 && std <= 1e30 ? std : 1 };
}

function idOf(row: CanonicalRow, ids: Map<string, number>): number {
  if (!("label" in row)) return -1;
  const known = ids.get(row.label);
  if (known !== undefined) return known;
  ids.set(row.label, ids.size);
  return ids.size - 1;
}

async function leaks(
  blobs: Blobs,
  fileId: string,
  trainingKeys: readonly number[],
): Promise<{ numLeaked: number; numValidationRows: number }> {
  const known = new Set(trainingKeys);
  let [numLeaked, numValidationRows] = [0, 0];
  for await (const line of rowLines(blobs, fileId)) {
    numValidationRows += 1;
    if (known.has(splitKey(parseRow(line)))) numLeaked += 1;
  }
  return { numLeaked, numValidationRows };
}

async function* linesWhere(blobs: Blobs, fileId: string, wanted: (row: number) => boolean): AsyncIterable<Uint8Array> {
  let row = 0;
  let batch: Buffer[] = [];
  let length = 0;
  for await (const line of rowLines(blobs, fileId)) {
    if (wanted(row)) {
      batch.push(line, newline);
      length += line.length + 1;
    }
    row += 1;
    if (length < 65536) continue;
    yield Buffer.concat(batch);
    batch = [];
    length = 0;
  }
  if (batch.length > 0) yield Buffer.concat(batch);
}

const newline = Buffer.from("\n");

async function* once(bytes: Uint8Array): AsyncIterable<Uint8Array> {
  yield bytes;
}
