/** Messages of one request on their way from the process to whoever iterates. One reader. */
import type { WireAnswer } from "./wire.js";

export class Answers implements AsyncIterable<WireAnswer> {
  private readonly waiting: WireAnswer[] = [];
  private outcome: { error: unknown } | "ended" | null = null;
  private wake: (() => void) | null = null;

  push(answer: WireAnswer): void {
    if (this.outcome !== null) return;
    this.waiting.push(answer);
    this.wake?.();
  }

  end(): void {
    this.outcome ??= "ended";
    this.wake?.();
  }

  /** What has come is still read; then the reader gets the error. */
  fail(error: unknown): void {
    this.outcome ??= { error };
    this.wake?.();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<WireAnswer, void, undefined> {
    for (;;) {
      const next = this.waiting.shift();
      if (next !== undefined) {
        yield next;
      } else if (this.outcome === "ended") {
        return;
      } else if (this.outcome !== null) {
        throw this.outcome.error;
      } else {
        await new Promise<void>((resolve) => {
          this.wake = resolve;
        });
        this.wake = null;
      }
    }
  }
}
