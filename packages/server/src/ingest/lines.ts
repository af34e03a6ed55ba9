/** Bytes -> lines, whatever ends them: LF, CRLF or CR. A line over the limit is counted, never held. */

export interface Line {
  /** From 1. */
  number: number;
  /** Without its ending. Empty when `tooLong`. */
  bytes: Buffer;
  /** Bytes of the line in the file (as UTF-8), also when `tooLong`. */
  length: number;
  tooLong: boolean;
}

const lf = 0x0a;
const cr = 0x0d;

export class LineSplitter {
  /** Lines by their ending; the last line may have none. */
  readonly endings = { lf: 0, crlf: 0, cr: 0 };
  readonly #maxBytes: number;
  #number = 1;
  #parts: Buffer[] = [];
  #length = 0;
  /** The last byte was CR: an LF now belongs to it. */
  #afterCr = false;

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  push(chunk: Buffer): Line[] {
    const lines: Line[] = [];
    let from = 0;
    if (this.#afterCr && chunk.length > 0) from = this.#closeCr(chunk[0] === lf, lines);
    let nextLf = chunk.indexOf(lf, from);
    let nextCr = chunk.indexOf(cr, from);
    while (nextLf !== -1 || nextCr !== -1) {
      const isCr = nextCr !== -1 && (nextLf === -1 || nextCr < nextLf);
      const end = isCr ? nextCr : nextLf;
      this.#keep(chunk.subarray(from, end));
      from = end + 1;
      if (!isCr) this.#close("lf", lines);
      else if (from === chunk.length) this.#afterCr = true;
      else if (chunk[from] === lf) {
        this.#close("crlf", lines);
        from += 1;
      } else this.#close("cr", lines);
      if (nextLf !== -1 && nextLf < from) nextLf = chunk.indexOf(lf, from);
      if (nextCr !== -1 && nextCr < from) nextCr = chunk.indexOf(cr, from);
    }
    // A copy: the rest of the chunk would otherwise be held by a slice of it.
    this.#keep(Buffer.from(chunk.subarray(from)));
    return lines;
  }

  /** The last line, when it has no ending. */
  end(): Line[] {
    const lines: Line[] = [];
    if (this.#afterCr) this.#closeCr(false, lines);
    if (this.#length > 0) lines.push(this.#take());
    return lines;
  }

  #closeCr(withLf: boolean, lines: Line[]): number {
    this.#afterCr = false;
    this.#close(withLf ? "crlf" : "cr", lines);
    return withLf ? 1 : 0;
  }

  #keep(bytes: Buffer): void {
    this.#length += bytes.length;
    if (this.#length > this.#maxBytes) this.#parts = [];
    else if (bytes.length > 0) this.#parts.push(bytes);
  }

  #close(ending: "lf" | "crlf" | "cr", lines: Line[]): void {
    this.endings[ending] += 1;
    lines.push(this.#take());
  }

  #take(): Line {
    const tooLong = this.#length > this.#maxBytes;
    const [only] = this.#parts;
    const bytes = this.#parts.length === 1 && only !== undefined ? only : Buffer.concat(this.#parts);
    const line = { number: this.#number, bytes, length: this.#length, tooLong };
    this.#number += 1;
    this.#parts = [];
    this.#length = 0;
    return line;
  }
}
