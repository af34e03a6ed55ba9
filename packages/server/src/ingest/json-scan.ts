/**
 * A strict look at one JSON text before `JSON.parse`: where and why it is broken, and three things that JSON.parse
 * lets pass but that mean different things to different readers: a key given twice, a number too large, and text
 * that is not Unicode (half a surrogate pair, NUL). Without recursion, so depth costs nothing.
 */

export interface JsonProblem {
  /** Byte offset in the text. */
  offset: number;
  rule: string;
  message: string;
  fix: string;
}

export const maxDepth = 128;

type Expect = "value" | "value_or_end" | "key" | "key_or_end" | "colon" | "comma_or_end" | "nothing";

const quote = 0x22;
const backslash = 0x5c;
const isSpace = (byte: number): boolean => byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09;

/** Null when `bytes` (valid UTF-8) is exactly one JSON value that every reader reads alike. */
export function scanJson(bytes: Buffer): JsonProblem | null {
  try {
    new Scanner(bytes).run();
    return null;
  } catch (error) {
    if (error instanceof Found) return error.problem;
    throw error;
  }
}

class Found {
  constructor(readonly problem: JsonProblem) {}
}

class Scanner {
  #at = 0;
  #expect: Expect = "value";
  /** One entry per open object (its keys) or list (null), with where it was opened. */
  readonly #open: { keys: Set<string> | null; offset: number }[] = [];

  constructor(private readonly bytes: Buffer) {}

  run(): void {
    const { bytes } = this;
    for (;;) {
      while (this.#at < bytes.length && isSpace(bytes[this.#at] ?? 0)) this.#at += 1;
      if (this.#at >= bytes.length) break;
      this.#token(bytes[this.#at] ?? 0);
    }
    if (this.#expect === "nothing") return;
    const open = this.#open.at(-1);
    if (open === undefined)
      this.#fail({
        offset: bytes.length,
        rule: "json_syntax",
        message: "There is no JSON value here.",
        fix: "Write an object, or remove the line.",
      });
    const what = open.keys === null ? "list" : "object";
    this.#fail({
      offset: bytes.length,
      rule: "json_syntax",
      message: `The JSON ends too early: the ${what} that opens at column ${columnOf(bytes, open.offset)} is not closed.`,
      fix: `Add the missing ${open.keys === null ? "]" : "}"}; each row must be whole on one line.`,
    });
  }

  #token(byte: number): void {
    const expect = this.#expect;
    if (expect === "nothing") this.#trailing(byte);
    else if (expect === "colon") this.#need(0x3a, { byte, expected: '":" after the key', next: "value" });
    else if (this.#closes(byte)) this.#close();
    else if (expect === "comma_or_end") {
      const inObject = this.#inObject();
      this.#need(0x2c, { byte, expected: inObject ? '"," or "}"' : '"," or "]"', next: inObject ? "key" : "value" });
    } else if (expect === "value" || expect === "value_or_end") this.#value(byte);
    else if (byte === quote) this.#key();
    else this.#unexpected("a key in double quotes");
  }

  /** The bracket that ends the innermost object or list, where one may end. */
  #closes(byte: number): boolean {
    if (byte === 0x7d) return this.#expect === "key_or_end" || (this.#expect === "comma_or_end" && this.#inObject());
    if (byte === 0x5d) return this.#expect === "value_or_end" || (this.#expect === "comma_or_end" && !this.#inObject());
    return false;
  }

  #need(wanted: number, { byte, expected, next }: { byte: number; expected: string; next: Expect }): void {
    if (byte !== wanted) this.#unexpected(expected);
    this.#punctuation(next);
  }

  #value(byte: number): void {
    if (byte === quote) {
      this.#string();
      this.#after();
    } else if (byte === 0x7b || byte === 0x5b) this.#openAt(byte);
    else if (byte === 0x2d || (byte >= 0x30 && byte <= 0x39)) this.#number();
    else this.#word();
  }

  #inObject(): boolean {
    return this.#open.at(-1)?.keys != null;
  }

  #punctuation(next: Expect): void {
    this.#at += 1;
    this.#expect = next;
  }

  #openAt(byte: number): void {
    if (this.#open.length >= maxDepth) {
      this.#fail({
        offset: this.#at,
        rule: "json_too_deep",
        message: `The JSON is nested more than ${maxDepth} levels deep.`,
        fix: "Flatten the row; a chat row needs about four levels.",
      });
    }
    this.#open.push({ keys: byte === 0x7b ? new Set() : null, offset: this.#at });
    this.#punctuation(byte === 0x7b ? "key_or_end" : "value_or_end");
  }

  #close(): void {
    this.#open.pop();
    this.#at += 1;
    this.#after();
  }

  #after(): void {
    this.#expect = this.#open.length === 0 ? "nothing" : "comma_or_end";
  }

  #key(): void {
    const start = this.#at;
    const escaped = this.#string();
    const raw = this.bytes.toString("latin1", start + 1, this.#at - 1);
    const key = escaped
      ? Buffer.from(JSON.parse(this.bytes.toString("utf8", start, this.#at)) as string).toString("latin1")
      : raw;
    const keys = this.#open.at(-1)?.keys;
    if (keys?.has(key) === true) {
      const shown = this.bytes.toString("utf8", start, Math.min(this.#at, start + 60));
      this.#fail({
        offset: start,
        rule: "json_duplicate_key",
        message: `The key ${shown} is given twice in one object.`,
        fix: "Keep one of them: readers differ in which one they take.",
      });
    }
    keys?.add(key);
    this.#expect = "colon";
  }

  /** Moves past the string that starts here; true when it holds an escape. */
  #string(): boolean {
    const { bytes } = this;
    let escaped = false;
    let at = this.#at + 1;
    while (at < bytes.length) {
      const byte = bytes[at] ?? 0;
      if (byte === quote) {
        this.#at = at + 1;
        return escaped;
      }
      if (byte === backslash) {
        escaped = true;
        at = this.#escape(at);
      } else {
        if (byte < 0x20) this.#controlCharacter(at, byte);
        at += 1;
      }
    }
    return this.#fail({
      offset: this.#at,
      rule: "json_syntax",
      message: "The text that begins here has no closing quote.",
      fix: 'Add the missing ", or write a quote inside the text as \\".',
    });
  }

  #controlCharacter(at: number, byte: number): never {
    if (byte === 0)
      this.#fail({
        offset: at,
        rule: "text_nul",
        message: "The text holds a NUL character.",
        fix: "Remove it: no tokenizer or database keeps it.",
      });
    const hex = byte.toString(16).padStart(2, "0");
    const name = byte === 0x09 ? "tab" : byte === 0x0a || byte === 0x0d ? "line break" : `control character 0x${hex}`;
    const write = { 9: "\\t", 10: "\\n", 13: "\\r" }[byte] ?? `\\u00${hex}`;
    this.#fail({
      offset: at,
      rule: "json_syntax",
      message: `There is a raw ${name} inside a text.`,
      fix: `Write it as ${write}.`,
    });
  }

  /** Checks the escape at `at` (a backslash) and answers where the text goes on. */
  #escape(at: number): number {
    const letter = this.bytes.toString("latin1", at + 1, at + 2);
    if (letter !== "u") {
      if (letter !== "" && '"\\/bfnrt'.includes(letter)) return at + 2;
      this.#fail({
        offset: at,
        rule: "json_syntax",
        message: `There is an unknown escape "\\${letter}" in a text.`,
        fix: "Write a backslash itself as \\\\.",
      });
    }
    const unit = this.#hex(at);
    if (unit === 0)
      this.#fail({
        offset: at,
        rule: "text_nul",
        message: "The text holds a NUL character (\\u0000).",
        fix: "Remove it: no tokenizer or database keeps it.",
      });
    if (unit < 0xd800 || unit > 0xdfff) return at + 6;
    const paired = unit <= 0xdbff && this.bytes.toString("latin1", at + 6, at + 8) === "\\u";
    const second = paired ? this.#hex(at + 6) : 0;
    if (second >= 0xdc00 && second <= 0xdfff) return at + 12;
    return this.#fail({
      offset: at,
      rule: "text_half_surrogate",
      message: "The text holds half of a surrogate pair, which is no character.",
      fix: "Write the character itself, or both halves, or remove it.",
    });
  }

  #hex(at: number): number {
    const digits = this.bytes.toString("latin1", at + 2, at + 6);
    if (!/^[0-9a-fA-F]{4}$/.test(digits))
      this.#fail({
        offset: at,
        rule: "json_syntax",
        message: "A \\u escape needs four hexadecimal digits.",
        fix: "Write it like \\u00e9, or write the character itself.",
      });
    return Number.parseInt(digits, 16);
  }

  #number(): void {
    const match = /^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?(?![\w.+-])/.exec(this.#ahead(400));
    const text = match?.[0];
    if (text === undefined) this.#badWord();
    if (!Number.isFinite(Number(text)))
      this.#fail({
        offset: this.#at,
        rule: "json_number",
        message: `The number ${text.slice(0, 40)} is too large.`,
        fix: "Write it as a text, or remove it.",
      });
    this.#at += text.length;
    this.#after();
  }

  #word(): void {
    const word = /^(true|false|null)(?![\w])/.exec(this.#ahead(8))?.[0];
    if (word === undefined) this.#badWord();
    this.#at += word.length;
    this.#after();
  }

  #badWord(): never {
    const word = /^[-+]?[\w.+-]+/.exec(this.#ahead(400))?.[0];
    if (word === undefined) this.#unexpected("a value");
    const json = { True: "true", False: "false", None: "null", undefined: "null" }[word];
    if (json !== undefined)
      this.#fail({
        offset: this.#at,
        rule: "json_syntax",
        message: `"${word}" is not JSON.`,
        fix: `Write ${json}. In Python, write rows with json.dumps.`,
      });
    if (/^[-+]?(nan|inf|infinity)$/i.test(word))
      this.#fail({
        offset: this.#at,
        rule: "json_number",
        message: `"${word}" is not JSON: expected a number, a text or null.`,
        fix: "Write null, or leave the key out.",
      });
    const short = word.slice(0, 40);
    this.#fail({
      offset: this.#at,
      rule: "json_syntax",
      message: `"${short}" is not a JSON value.`,
      fix: /^[-+.\d]/.test(word)
        ? "Write the number plainly, such as 12 or -0.5, or put it in quotes."
        : "Put text in double quotes.",
    });
  }

  #trailing(byte: number): never {
    const message = `There is more text after the end of the row, beginning with ${this.#found()}.`;
    this.#fail({
      offset: this.#at,
      rule: "json_syntax",
      message,
      fix:
        byte === 0x2c
          ? "Remove the comma at the end of the line: JSONL has none between rows."
          : "Write one object a line, and nothing else.",
    });
  }

  #unexpected(expected: string): never {
    const byte = this.bytes[this.#at];
    const fix =
      byte === 0x27
        ? "Use double quotes: JSON has no single quotes. In Python, write rows with json.dumps."
        : (byte === 0x7d || byte === 0x5d) && (this.#expect === "key" || this.#expect === "value")
          ? "Remove the comma before it."
          : 'Correct the JSON here: a missing comma, colon or quote, or a quote inside a text that is not written as \\".';
    this.#fail({
      offset: this.#at,
      rule: "json_syntax",
      message: `Expected ${expected}, found ${this.#found()}.`,
      fix,
    });
  }

  #ahead(length: number): string {
    return this.bytes.toString("latin1", this.#at, this.#at + length);
  }

  #found(): string {
    const [character = ""] = this.bytes.toString("utf8", this.#at, this.#at + 4);
    const code = character.codePointAt(0) ?? 0;
    return code < 0x20 || code === 0x7f
      ? `the control character 0x${code.toString(16).padStart(2, "0")}`
      : character === '"'
        ? "a quote"
        : `"${character}"`;
  }

  #fail(problem: JsonProblem): never {
    throw new Found(problem);
  }
}

/** 1-based column of a byte offset, counted in characters; from the last line break before it. */
export function columnOf(bytes: Buffer, offset: number): number {
  let column = 1;
  for (let at = offset - 1; at >= 0 && bytes[at] !== 0x0a; at -= 1) if (((bytes[at] ?? 0) & 0xc0) !== 0x80) column += 1;
  return column;
}
