/** TypeScript's compiler messages in several languages: short technical sentences, translated by people (Apache-2.0). */
import { z } from "zod";
import { holdOut, textHash } from "../../packages/server/src/domain/split.js";
import { seededRandom } from "../data/random.js";
import { type NpmPackage, packageFiles } from "../data/npm-package.js";

export const messagesPackage: NpmPackage = {
  name: "typescript",
  version: "5.9.3",
  integrity: "sha512-jl1vZzPDinLr9eUt3J/t7V6FgNEw9QjvBPdysz9KfQDD41fQrC2Y4vKQdiaUpFT4bXlb1RHhLpp8wtm6M5TgSw==",
  licence: "Apache-2.0",
};

/** The target of the tuning, then the languages that only the base model learns from. */
export const targetLanguage = "de";
export const otherLanguages = ["es", "fr", "it"] as const;
type LanguageCode = typeof targetLanguage | (typeof otherLanguages)[number];

export interface Message {
  english: string;
  translations: Partial<Record<LanguageCode, string>>;
  /** Messages that differ in names, numbers and little else share it. */
  group: string;
}

export interface MessageData {
  train: Message[];
  test: Message[];
}

const translationsSchema = z.record(z.string(), z.string());
const maxLength = 160;
const minLength = 12;

/** The messages of the package, in the order of the compiler's table. */
export function readMessages(tarball: Buffer): Message[] {
  const codes = [targetLanguage, ...otherLanguages];
  const paths = new Set(["lib/_tsc.js", ...codes.map((code) => `lib/${code}/diagnosticMessages.generated.json`)]);
  const files = new Map(
    [...packageFiles(tarball, (path) => paths.has(path))].map(({ path, content }) => [path, content.toString("utf8")]),
  );
  const missing = [...paths].filter((path) => !files.has(path));
  if (missing.length > 0) throw new Error(`typescript@${messagesPackage.version} has no ${missing.join(", ")}.`);
  const translated = codes.map(
    (code) =>
      [
        code,
        translationsSchema.parse(JSON.parse(files.get(`lib/${code}/diagnosticMessages.generated.json`) ?? "{}")),
      ] as const,
  );
  return [...englishMessages(files.get("lib/_tsc.js") ?? "")].flatMap(([key, english]) => {
    const translations = Object.fromEntries(
      translated.flatMap(([code, texts]) => (texts[key] === undefined ? [] : [[code, texts[key]]])),
    );
    const fits = [english, ...Object.values(translations)].every(
      (text) => text.length >= minLength && text.length <= maxLength,
    );
    return fits && translations[targetLanguage] !== undefined
      ? [{ english, translations, group: skeleton(english) }]
      : [];
  });
}

/** `diag(1002, 1, "Unterminated_string_literal_1002", "Unterminated string literal.")` -> key and text. */
function* englishMessages(compiler: string): Generator<[key: string, text: string]> {
  for (const [, key, text] of compiler.matchAll(
    /\bdiag\(\d+, \d+ \/\* \w+ \*\/, ("[^"\n]*"), ("(?:[^"\\\n]|\\.)*")/g,
  )) {
    yield [JSON.parse(key ?? '""') as string, JSON.parse(text ?? '""') as string];
  }
}

/** What stays when names in quotes, placeholders and numbers are taken out: the first six words of it. */
const skeleton = (english: string): string =>
  (
    english
      .replaceAll(/'[^']*'|\{\d\}|\d+/g, " ")
      .toLowerCase()
      .match(/[a-z]+/g) ?? []
  )
    .slice(0, 6)
    .join(" ");

/** Test messages share no group, and no text, with training messages. Deterministic. */
export function splitMessages(
  messages: readonly Message[],
  { seed, numTest }: { seed: number; numTest: number },
): MessageData {
  const seen = new Set<string>();
  const unique = messages.filter(({ english }) => !seen.has(english) && seen.add(english));
  const keys = unique.map(({ group }) => textHash(group));
  const held = holdOut({ keys, strata: unique.map(() => 0), fraction: 0.12, maxRows: unique.length, seed });
  const random = seededRandom(seed);
  const train = unique.filter((_, row) => held[row] === 0);
  const test = random.shuffled(unique.filter((_, row) => held[row] === 1)).slice(0, numTest);
  return { train: random.shuffled(train), test };
}

/** What the model reads: the target language, then the sentence. */
export const prompt = (code: LanguageCode, english: string): string => `${code}: ${english}`;

/** Rows for the base model: every language but the target is translated to; German is only read and restored. */
export function baseRows(
  train: readonly Message[],
): { kind: "translate" | "restore"; prompt: string; completion: string }[] {
  return train.flatMap(({ english, translations }) => {
    const german = translations[targetLanguage] ?? "";
    const restore = [english, german].map((text) => ({ kind: "restore" as const, prompt: text, completion: text }));
    const others = otherLanguages.flatMap((code) => {
      const text = translations[code];
      return text === undefined
        ? []
        : [{ kind: "translate" as const, prompt: prompt(code, english), completion: text }];
    });
    return [...restore, ...others];
  });
}
