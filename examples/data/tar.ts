/** Reads the files of a tar archive held in memory (ustar with GNU and pax long names): enough for npm packages. */

export interface TarFile {
  /** Path as the archive has it: `package/lib/index.js`. */
  path: string;
  content: Buffer;
}

const block = 512;

/** Regular files whose path `wanted` accepts, in order. Throws RangeError when the archive is cut off. */
export function* tarFiles(archive: Buffer, wanted: (path: string) => boolean): Generator<TarFile> {
  let at = 0;
  let longPath: string | null = null;
  while (at + block <= archive.length) {
    const header = archive.subarray(at, at + block);
    if (header.every((byte) => byte === 0)) return;
    const size = Number.parseInt(text(header, 124, 12).trim() || "0", 8);
    const content = archive.subarray(at + block, at + block + size);
    if (content.length < size || Number.isNaN(size))
      throw new RangeError(`The archive is cut off or damaged at byte ${at}.`);
    const kind = String.fromCharCode(header[156] ?? 0);
    at += block + Math.ceil(size / block) * block;
    if (kind === "L") longPath = text(content, 0, content.length);
    else if (kind === "x") longPath = paxPath(content.toString("utf8")) ?? longPath;
    else {
      const prefix = text(header, 345, 155);
      const path = longPath ?? (prefix === "" ? "" : `${prefix}/`) + text(header, 0, 100);
      longPath = null;
      if ((kind === "0" || kind === "\0") && wanted(path)) yield { path, content };
    }
  }
}

function text(bytes: Buffer, start: number, length: number): string {
  const field = bytes.subarray(start, start + length);
  const end = field.indexOf(0);
  return field.subarray(0, end === -1 ? field.length : end).toString("utf8");
}

/** Records of a pax header are `<length> <key>=<value>\n`. */
const paxPath = (records: string): string | null => /^\d+ path=(.*)$/m.exec(records)?.[1] ?? null;
