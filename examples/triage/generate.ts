/**
 * Support messages with their triage, made from templates by a seeded generator.
 *
 * A template is one way to say one issue in one language (`de/crash/2`); it is the row's group. The last
 * wording of every issue and the last wording of every urgency are kept for the held-out rows: a model is
 * tested on sentences it has never seen, not on slots filled differently.
 */
import { readFile } from "node:fs/promises";
import { z } from "zod";
import { type Random, seededRandom } from "../data/random.js";
import {
  type IssueId,
  issues,
  type Language,
  languages,
  slots,
  systemPrompt,
  type Triage,
  type Urgency,
  urgencies,
} from "./triage.js";

export interface TriageRow {
  message: string;
  triage: Triage;
  /** The template's id. */
  group: string;
}

export interface TriageData {
  train: TriageRow[];
  heldOut: TriageRow[];
}

const phraseList = z.array(z.string().min(1)).min(3);
const phrasesSchema = z.strictObject({
  greetings: phraseList,
  thanks: phraseList,
  urgent: phraseList,
  normal: phraseList,
  relaxed: phraseList,
  issues: z.record(z.enum(Object.keys(issues) as [IssueId, ...IssueId[]]), phraseList),
});
type Phrases = z.infer<typeof phrasesSchema>;
type Part = "train" | "heldOut";

/** Deterministic: the same options give the same rows. No message appears twice, in or between the parts. */
export async function generateTriage({
  seed,
  numTrain,
  numHeldOut,
}: {
  seed: number;
  numTrain: number;
  numHeldOut: number;
}): Promise<TriageData> {
  const phrases = await readPhrases();
  const random = seededRandom(seed);
  const seen = new Set<string>();
  return {
    train: makeRows({ part: "train", count: numTrain, phrases, random, seen }),
    heldOut: makeRows({ part: "heldOut", count: numHeldOut, phrases, random, seen }),
  };
}

/** A chat row as OpenAI's fine-tuning files have it. */
export function toChatRow(row: TriageRow): { messages: { role: "system" | "user" | "assistant"; content: string }[] } {
  return {
    messages: [
      { role: "system", content: systemPrompt },
      { role: "user", content: row.message },
      { role: "assistant", content: JSON.stringify(row.triage) },
    ],
  };
}

interface Making {
  part: Part;
  count: number;
  phrases: Record<Language, Phrases>;
  random: Random;
  seen: Set<string>;
}

/** Goes round every issue in every language, so that each is met equally often. */
function makeRows({ part, count, phrases, random, seen }: Making): TriageRow[] {
  const kinds = languages.flatMap((language) =>
    (Object.keys(issues) as IssueId[]).map((issue) => ({ language, issue })),
  );
  const rows: TriageRow[] = [];
  while (rows.length < count) {
    const before = rows.length;
    for (const { language, issue } of random.shuffled(kinds)) {
      if (rows.length === count) break;
      const row = makeRow({ part, language, issue, phrases: phrases[language], random });
      if (seen.has(row.message)) continue;
      seen.add(row.message);
      rows.push(row);
    }
    if (rows.length === before) throw new RangeError(`The ${part} templates do not give ${count} different messages.`);
  }
  return rows;
}

function makeRow(input: {
  part: Part;
  language: Language;
  issue: IssueId;
  phrases: Phrases;
  random: Random;
}): TriageRow {
  const { part, language, issue, phrases, random } = input;
  const wordings = allowed(phrases.issues[issue], part);
  const wording = random.pick(wordings);
  const urgency = random.pick(urgencies);
  const cue = random.pick(allowed(cuesOf(phrases, urgency), part));
  const values = Object.fromEntries(Object.entries(slots).map(([slot, choices]) => [slot, random.pick(choices)]));
  const sentences = random.chance(0.8) ? [wording, cue] : [cue, wording];
  if (random.chance(0.25)) sentences.unshift(random.pick(phrases.greetings));
  if (random.chance(0.25)) sentences.push(random.pick(phrases.thanks));
  const text = fill(sentences.join(" "), values);
  return {
    message: random.chance(0.15) ? text.toLowerCase().replace(/[.!]$/, "") : text,
    triage: { product: issues[issue].product, urgency, language, summary: fill(issues[issue].summary, values) },
    group: `${language}/${issue}/${phrases.issues[issue].indexOf(wording)}`,
  };
}

/** The last wording is for the held-out part alone. */
const allowed = (wordings: readonly string[], part: Part): string[] =>
  part === "heldOut" ? wordings.slice(-1) : wordings.slice(0, -1);

function cuesOf(phrases: Phrases, urgency: Urgency): string[] {
  if (urgency === "high") return phrases.urgent;
  return urgency === "low" ? phrases.relaxed : phrases.normal;
}

const fill = (template: string, values: Record<string, string>): string =>
  template.replaceAll(/\{(\w+)\}/g, (slot, name: string) => values[name] ?? slot);

async function readPhrases(): Promise<Record<Language, Phrases>> {
  const entries = languages.map(async (language) => {
    const text = await readFile(new URL(`phrases/${language}.json`, import.meta.url), "utf8");
    return [language, phrasesSchema.parse(JSON.parse(text))] as const;
  });
  return Object.fromEntries(await Promise.all(entries)) as Record<Language, Phrases>;
}
