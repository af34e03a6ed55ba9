/**
 * A tar archive as a stream (POSIX ustar). Files over 8 GiB have their size in base 256, as GNU tar writes and reads it.
 *
 *   header 512 bytes │ content │ zeros up to a multiple of 512 │ … │ 1024 zeros
 */
const blockBytes = 512;
const largestOctal = 0o77777777777;

export interface TarFile {
  name: string;
  bytes: number;
  content: AsyncIterable<Uint8Array>;
}

/** Header, content, filling. Throws when the content has not the bytes it was said to have. */
export async function* tarFile({ name, bytes, content }: TarFile): AsyncGenerator<Uint8Array> {
  yield tarHeader(name, bytes, "0");
  let sent = 0;
  for await (const chunk of content) {
    sent += chunk.byteLength;
    if (sent > bytes) break;
    yield chunk;
  }
  if (sent !== bytes) throw new Error(`${name} has ${sent} bytes where ${bytes} were announced`);
  yield filling(bytes);
}

/** Says nothing to who unpacks it: a comment in the extended format every tar reads over. */
export function tarComment(text: string): Uint8Array {
  const rest = ` comment=${text}\n`;
  let length = rest.length;
  while (String(length).length + rest.length !== length) length = String(length).length + rest.length;
  const record = Buffer.from(`${length}${rest}`);
  return Buffer.concat([tarHeader("pax_global_header", record.length, "g"), record, filling(record.length)]);
}

export const tarEnd = (): Uint8Array => Buffer.alloc(2 * blockBytes);

const filling = (bytes: number): Uint8Array => Buffer.alloc((blockBytes - (bytes % blockBytes)) % blockBytes);

function tarHeader(name: string, bytes: number, type: "0" | "g"): Buffer {
  const header = Buffer.alloc(blockBytes);
  if (Buffer.byteLength(name) > 100) throw new Error(`${name}: a name in this archive has at most 100 bytes`);
  header.write(name, 0);
  header.write("0000644\0", 100);
  header.write("0000000\0", 108);
  header.write("0000000\0", 116);
  if (bytes <= largestOctal) header.write(`${bytes.toString(8).padStart(11, "0")}\0`, 124);
  else {
    header[124] = 0x80;
    header.writeBigUInt64BE(BigInt(bytes), 128);
  }
  header.write("00000000000\0", 136);
  header.write(" ".repeat(8), 148);
  header.write(type, 156);
  header.write("ustar\0", 257);
  header.write("00", 263);
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148);
  return header;
}
