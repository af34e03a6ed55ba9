import { gzipSync } from "node:zlib";
import { expect, it } from "vitest";
import { baseRows, type Message, readMessages, splitMessages } from "../../examples/translate/messages.js";

/** A package of one block a file, as npm packs them. */
function pack(files: Record<string, string>): Buffer {
  const blocks = Object.entries(files).map(([path, text]) => {
    const content = Buffer.from(text);
    const header = Buffer.alloc(512);
    header.write(`package/${path}`, 0);
    header.write(content.length.toString(8).padStart(11, "0"), 124);
    header.write("0", 156);
    return Buffer.concat([header, content, Buffer.alloc((512 - (content.length % 512)) % 512)]);
  });
  return gzipSync(Buffer.concat([...blocks, Buffer.alloc(1024)]));
}

const compiler = `var Diagnostics = {
  a: diag(1002, 1 /* Error */, "Unterminated_1002", "Unterminated string literal."),
  b: diag(1003, 1 /* Error */, "Say_1003", "The word \\"declare\\" cannot stand here: {0}."),
  c: diag(1004, 3 /* Message */, "Short_1004", "Yes"),
  d: diag(1005, 1 /* Error */, "Untranslated_1005", "Nobody translated this message.") };`;
const tables = {
  de: {
    Unterminated_1002: "Nicht abgeschlossenes Literal.",
    Say_1003: 'Das Wort "declare" darf hier nicht stehen: {0}.',
    Short_1004: "Ja",
  },
  es: { Unterminated_1002: "Literal de cadena sin terminar." },
  fr: {},
  it: {},
};

it("joins the compiler's table with its translations, and leaves out what is short or not translated", () => {
  const files = Object.fromEntries(
    Object.entries(tables).map(([code, table]) => [
      `lib/${code}/diagnosticMessages.generated.json`,
      JSON.stringify(table),
    ]),
  );
  const messages = readMessages(pack({ "lib/_tsc.js": compiler, ...files }));
  expect(messages).toEqual([
    {
      english: "Unterminated string literal.",
      translations: { de: "Nicht abgeschlossenes Literal.", es: "Literal de cadena sin terminar." },
      group: "unterminated string literal",
    },
    {
      english: 'The word "declare" cannot stand here: {0}.',
      translations: { de: 'Das Wort "declare" darf hier nicht stehen: {0}.' },
      group: "the word declare cannot stand here",
    },
  ]);
  expect(() => readMessages(pack({ "lib/_tsc.js": compiler }))).toThrow(
    "has no lib/de/diagnosticMessages.generated.json",
  );
});

const sample: Message[] = Array.from({ length: 200 }, (_, at) => ({
  english: `Message about thing ${at} of kind ${"abcdefghij"[at % 10]}.`,
  translations: { de: `Meldung ${at}.`, it: `Messaggio ${at}.` },
  group: `kind ${Math.floor(at / 2)}`,
}));

it("splits by pattern, the same way each time, and keeps the target language out of the base's translations", () => {
  const { train, test } = splitMessages(sample, { seed: 1, numTest: 20 });
  expect(splitMessages(sample, { seed: 1, numTest: 20 })).toEqual({ train, test });
  expect(test).toHaveLength(20);
  const trained = new Set(train.map(({ group }) => group));
  expect(test.filter(({ group }) => trained.has(group))).toEqual([]);
  const rows = baseRows(train);
  expect(rows.filter(({ kind, prompt }) => kind === "translate" && !prompt.startsWith("it: "))).toEqual([]);
  const tested = new Set(test.flatMap(({ english, translations }) => [english, translations.de]));
  expect(rows.filter(({ completion }) => tested.has(completion))).toEqual([]);
});
