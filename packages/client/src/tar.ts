/**
 * Reads a tar archive as it comes (POSIX ustar; sizes over 8 GiB in base 256). Only plain files in the folder itself or
 * below it are given: a name that leads elsewhere, a link or a device ends the reading.
 */
const blockBytes = 512;

export interface TarEntry {
  name: string;
  bytes: number;
  /** To be read to its end before the next entry is asked for. */
  content: AsyncIterable<Uint8Array>;
}

/** Makes the error for an archive that is cut short, or holds what it must not. */
type Broken = (why: string) => Error;

/** `said` hears the archive's comments. */
export async function* readTar(
  source: AsyncIterable<Uint8Array>,
  broken: Broken,
  said: (comment: string) => void = () => undefined,
): AsyncGenerator<TarEntry> {
  const bytes = new ByteReader(source, broken);
  try {
    for (;;) {
      const header = await bytes.take(blockBytes);
      if (header.every((byte) => byte === 0)) return;
      const entry = parseHeader(header, broken);
      if (entry.type === "g") {
        const record = text(await bytes.take(padded(entry.bytes)), 0, entry.bytes);
        const comment = /^\d+ comment=([^\n]*)\n$/.exec(record)?.[1];
        if (comment !== undefined) said(comment);
      } else {
        yield { name: entry.name, bytes: entry.bytes, content: bytes.flow(entry.bytes) };
        await bytes.take(padded(entry.bytes) - entry.bytes);
      }
    }
  } finally {
    await bytes.close();
  }
}

const padded = (bytes: number): number => Math.ceil(bytes / blockBytes) * blockBytes;

/** Comments are small; a larger one is no comment. */
const maxCommentBytes = 65_536;
const part = /^(?!\.{1,2}$)[A-Za-z0-9._-]{1,100}$/;

function parseHeader(header: Uint8Array, broken: Broken): { name: string; bytes: number; type: "0" | "g" } {
  const sum = header.reduce((total, byte, at) => total + (at >= 148 && at < 156 ? 0x20 : byte), 0);
  if (Number.parseInt(text(header, 148, 8), 8) !== sum) throw broken("a header's checksum is wrong");
  const name = text(header, 0, 100);
  const type = text(header, 156, 1);
  const bytes = sizeOf(header.subarray(124, 136), broken);
  if (type === "g") {
    if (bytes > maxCommentBytes) throw broken("a comment is larger than any comment");
    return { name, bytes, type };
  }
  if (type !== "0") throw broken(`${JSON.stringify(name)} is no plain file`);
  if (!name.split("/").every((one) => part.test(one)))
    throw broken(`${JSON.stringify(name)} is no name of a file in the folder`);
  return { name, bytes, type };
}

function sizeOf(field: Uint8Array, broken: Broken): number {
  const first = field[0] ?? 0;
  const size =
    first === 0x80
      ? field.subarray(1).reduce((sum, byte) => sum * 256 + byte, 0)
      : Number.parseInt(text(field, 0, field.length), 8);
  if (!Number.isSafeInteger(size) || size < 0) throw broken("a file's size is unreadable");
  return size;
}

function text(bytes: Uint8Array, start: number, length: number): string {
  const field = bytes.subarray(start, start + length);
  const end = field.indexOf(0);
  return new TextDecoder().decode(end === -1 ? field : field.subarray(0, end));
}

/** Cuts a stream where it is asked to. */
class ByteReader {
  private readonly iterator: AsyncIterator<Uint8Array>;
  private rest: Uint8Array = new Uint8Array();

  constructor(
    source: AsyncIterable<Uint8Array>,
    private readonly broken: Broken,
  ) {
    this.iterator = source[Symbol.asyncIterator]();
  }

  async take(count: number): Promise<Uint8Array> {
    const taken = new Uint8Array(count);
    let at = 0;
    for await (const chunk of this.flow(count)) {
      taken.set(chunk, at);
      at += chunk.byteLength;
    }
    return taken;
  }

  async *flow(count: number): AsyncGenerator<Uint8Array> {
    for (let left = count; left > 0; ) {
      if (this.rest.byteLength === 0) await this.more();
      const chunk = this.rest.subarray(0, left);
      this.rest = this.rest.subarray(chunk.byteLength);
      left -= chunk.byteLength;
      yield chunk;
    }
  }

  private async more(): Promise<void> {
    const next = await this.iterator.next();
    if (next.done) throw this.broken("it ends too early");
    this.rest = next.value;
  }

  async close(): Promise<void> {
    await this.iterator.return?.();
  }
}
