/** Bytes of any Unicode file -> UTF-8 without a byte order mark. Chunk borders never matter. */
import { AppError } from "../domain/error.js";

export type Encoding = "utf-8" | "utf-8-bom" | "utf-16le" | "utf-16be";

export interface Utf8Stream {
  encoding: Encoding;
  /** The first bytes (up to 4096), as UTF-8: enough to tell the format. */
  head: Buffer;
  chunks: AsyncIterable<Buffer>;
}

const sniffBytes = 4096;

/** Half of a UTF-16 pair has no UTF-8 form: this byte, valid nowhere in UTF-8, marks its place for the line checks. */
const invalidByte = Buffer.from([0xff]);

export async function asUtf8(source: AsyncIterable<Uint8Array>): Promise<Utf8Stream> {
  const iterator = source[Symbol.asyncIterator]();
  const start: Buffer[] = [];
  let length = 0;
  while (length < sniffBytes) {
    const next = await iterator.next();
    if (next.done === true) break;
    start.push(asBuffer(next.value));
    length += next.value.length;
  }
  const first = Buffer.concat(start);
  const { encoding, bomBytes } = sniff(first);
  const body = first.subarray(bomBytes);
  async function* rest(): AsyncIterable<Buffer> {
    try {
      if (body.length > 0) yield body;
      for (let next = await iterator.next(); next.done !== true; next = await iterator.next())
        yield asBuffer(next.value);
    } finally {
      await iterator.return?.();
    }
  }
  if (encoding === "utf-8" || encoding === "utf-8-bom")
    return { encoding, head: body.subarray(0, sniffBytes), chunks: rest() };
  const evenHead = body.subarray(0, Math.min(sniffBytes, body.length) & ~1);
  const head = Buffer.from(new Utf16Decoder(encoding).push(evenHead));
  return { encoding, head, chunks: decodeUtf16(rest(), encoding) };
}

const asBuffer = (bytes: Uint8Array): Buffer => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);

function sniff(first: Buffer): { encoding: Encoding; bomBytes: number } {
  if (first[0] === 0xef && first[1] === 0xbb && first[2] === 0xbf) return { encoding: "utf-8-bom", bomBytes: 3 };
  if (first[0] === 0xff && first[1] === 0xfe) return { encoding: "utf-16le", bomBytes: 2 };
  if (first[0] === 0xfe && first[1] === 0xff) return { encoding: "utf-16be", bomBytes: 2 };
  // Without a mark: an ASCII character and a NUL side by side, as in `{\0"\0`, is UTF-16 and never UTF-8 text.
  if (isAscii(first[0]) && first[1] === 0 && isAscii(first[2]) && first[3] === 0)
    return { encoding: "utf-16le", bomBytes: 0 };
  if (first[0] === 0 && isAscii(first[1]) && first[2] === 0 && isAscii(first[3]))
    return { encoding: "utf-16be", bomBytes: 0 };
  return { encoding: "utf-8", bomBytes: 0 };
}

const isAscii = (byte: number | undefined): boolean => byte !== undefined && byte > 0 && byte < 0x80;

async function* decodeUtf16(chunks: AsyncIterable<Buffer>, encoding: Encoding): AsyncIterable<Buffer> {
  const decoder = new Utf16Decoder(encoding);
  for await (const chunk of chunks) {
    const decoded = decoder.push(chunk);
    if (decoded.length > 0) yield decoded;
  }
  const tail = decoder.end();
  if (tail.length > 0) yield tail;
}

class Utf16Decoder {
  /** Bytes not decoded yet: an odd byte, or the first half of a surrogate pair. */
  #held: Buffer = Buffer.alloc(0);

  constructor(private readonly encoding: Encoding) {}

  push(chunk: Buffer): Buffer {
    const bytes = Buffer.concat([this.#held, chunk]);
    let usable = bytes.length & ~1;
    const lastUnit = usable >= 2 ? this.#unit(bytes, usable - 2) : 0;
    if (lastUnit >= 0xd800 && lastUnit <= 0xdbff) usable -= 2;
    this.#held = Buffer.from(bytes.subarray(usable));
    const units = Buffer.from(bytes.subarray(0, usable));
    return encodeUnits(this.encoding === "utf-16be" ? units.swap16() : units);
  }

  end(): Buffer {
    return this.#held.length === 0 ? this.#held : invalidByte;
  }

  #unit(bytes: Buffer, offset: number): number {
    return this.encoding === "utf-16be" ? bytes.readUInt16BE(offset) : bytes.readUInt16LE(offset);
  }
}

function encodeUnits(units: Buffer): Buffer {
  const text = units.toString("utf16le");
  if (!/\p{Cs}/u.test(text)) return Buffer.from(text);
  const pieces = text.split(/\p{Cs}/u);
  return Buffer.concat(
    pieces.flatMap((piece, index) => (index === 0 ? [Buffer.from(piece)] : [invalidByte, Buffer.from(piece)])),
  );
}

const magics: readonly { bytes: readonly number[]; name: string; fix: string }[] = [
  { bytes: [0x1f, 0x8b], name: "a gzip archive", fix: "Unpack it with gunzip, then upload the file inside." },
  {
    bytes: [0x50, 0x4b, 0x03, 0x04],
    name: "a zip archive or an Excel or Word file",
    fix: "Unpack it, or save the sheet as CSV UTF-8.",
  },
  {
    bytes: [0x28, 0xb5, 0x2f, 0xfd],
    name: "a zstd archive",
    fix: "Unpack it with unzstd, then upload the file inside.",
  },
  {
    bytes: [0x50, 0x41, 0x52, 0x31],
    name: "a Parquet file",
    fix: "Write it as JSONL: pandas.read_parquet(…).to_json(…, orient='records', lines=True).",
  },
  { bytes: [0x25, 0x50, 0x44, 0x46], name: "a PDF", fix: "Upload rows as JSONL or CSV." },
];

/** Refuses archives and office files by their first bytes: AppError `invalid_training_file`. */
export function refuseBinary(head: Buffer): void {
  const found = magics.find(({ bytes }) => bytes.every((byte, index) => head[index] === byte));
  if (found === undefined) return;
  const message = `The file is ${found.name}: expected JSONL or CSV text.`;
  throw new AppError("invalid_training_file", `${message} ${found.fix}`, {
    details: { faults: [{ rule: "binary_file", message, fix: found.fix }] },
  });
}
