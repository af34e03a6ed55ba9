/**
 * A JSON array given instead of lines, split into its elements while it streams by. Only brackets, quotes and commas
 * are looked at here; each element is then checked like a line. An element over the limit is counted, never held.
 */
import type { Fault } from "@fettle/contract";

export interface Element {
  /** Where the element begins, from 1. `column` counts bytes. */
  line: number;
  column: number;
  bytes: Buffer;
  length: number;
  tooLong: boolean;
}

type State = "before" | "element_or_end" | "element" | "inside" | "after";

export class ArraySplitter {
  readonly faults: Fault[] = [];
  readonly #maxBytes: number;
  #state: State = "before";
  #depth = 0;
  #inString = false;
  #escaped = false;
  #line = 1;
  #column = 1;
  #parts: Buffer[] = [];
  #length = 0;
  #begins = { line: 1, column: 1 };

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  push(chunk: Buffer): Element[] {
    const elements: Element[] = [];
    /** Where the element's bytes begin in this chunk. */
    let from = 0;
    for (let at = 0; at < chunk.length; at += 1) {
      const byte = chunk[at] ?? 0;
      if (this.#state === "inside") {
        if (this.#endsElement(byte)) {
          this.#keep(chunk.subarray(from, at));
          elements.push(this.#take());
          this.#state = byte === 0x2c ? "element" : "after";
        }
      } else if (!isSpace(byte)) {
        if (this.#between(byte)) from = at;
      }
      this.#advance(byte);
    }
    if (this.#state === "inside") this.#keep(Buffer.from(chunk.subarray(from)));
    return elements;
  }

  end(): Element[] {
    if (this.#state === "after") return [];
    const rest = this.#state === "inside" ? [this.#take()] : [];
    this.#fault(
      "array_not_closed",
      "The JSON array is not closed: the file ends before its ].",
      "Was the file cut off? Add the missing ], or write one object a line without brackets.",
    );
    return rest;
  }

  /** Between elements; true when `byte` begins one. */
  #between(byte: number): boolean {
    if (this.#state === "before") {
      this.#state = "element_or_end";
      return false;
    }
    if (this.#state === "after") {
      if (this.faults.at(-1)?.rule !== "array_trailing") {
        this.#fault(
          "array_trailing",
          "There is more text after the ] that closes the array.",
          "Put every row inside one array, or write one object a line without brackets.",
        );
      }
      return false;
    }
    if (byte === 0x5d) {
      if (this.#state === "element")
        this.#fault("array_comma", "There is a comma before the ] that closes the array.", "Remove the comma.");
      this.#state = "after";
      return false;
    }
    if (byte === 0x2c) {
      this.#fault("array_comma", "There is a comma with no row before it.", "Remove the comma.");
      return false;
    }
    this.#state = "inside";
    this.#begins = { line: this.#line, column: this.#column };
    this.#endsElement(byte);
    return true;
  }

  /** Follows strings and brackets; true at the comma or bracket that ends the element. */
  #endsElement(byte: number): boolean {
    if (this.#inString) {
      if (this.#escaped) this.#escaped = false;
      else if (byte === 0x5c) this.#escaped = true;
      else if (byte === 0x22) this.#inString = false;
      return false;
    }
    if (byte === 0x22) this.#inString = true;
    else if (byte === 0x7b || byte === 0x5b) this.#depth += 1;
    else if (this.#depth === 0) return byte === 0x2c || byte === 0x5d;
    else if (byte === 0x7d || byte === 0x5d) this.#depth -= 1;
    return false;
  }

  #advance(byte: number): void {
    if (byte === 0x0a) {
      this.#line += 1;
      this.#column = 1;
    } else this.#column += 1;
  }

  #keep(bytes: Buffer): void {
    this.#length += bytes.length;
    if (this.#length > this.#maxBytes) this.#parts = [];
    else if (bytes.length > 0) this.#parts.push(bytes);
  }

  #take(): Element {
    const element = {
      ...this.#begins,
      bytes: Buffer.concat(this.#parts),
      length: this.#length,
      tooLong: this.#length > this.#maxBytes,
    };
    this.#parts = [];
    this.#length = 0;
    this.#depth = 0;
    this.#inString = false;
    this.#escaped = false;
    return element;
  }

  #fault(rule: string, message: string, fix: string): void {
    this.faults.push({ line: this.#line, rule, message, fix });
  }
}

const isSpace = (byte: number): boolean => byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09;
