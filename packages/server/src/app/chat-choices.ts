/** Several answers to one prompt, generated at the same time and told apart by `index`. */
import type { GenerateChunk } from "./ports.js";

export interface ChoicePart {
  index: number;
  chunk: GenerateChunk;
}

/**
 * Merges `count` generations in the order their chunks come. One that fails, or a reader that stops reading,
 * ends the others: each gets a signal that follows `signal`.
 */
export async function* generateChoices(
  count: number,
  generate: (index: number, signal: AbortSignal) => AsyncIterable<GenerateChunk>,
  signal: AbortSignal,
): AsyncIterable<ChoicePart> {
  const controller = new AbortController();
  const own = AbortSignal.any([signal, controller.signal]);
  const iterators = Array.from({ length: count }, (_, index) => generate(index, own)[Symbol.asyncIterator]());
  const next = async (index: number): Promise<{ index: number; result: IteratorResult<GenerateChunk> }> => {
    const iterator = iterators[index];
    return { index, result: iterator === undefined ? { done: true, value: undefined } : await iterator.next() };
  };
  const pending = new Map(iterators.map((_, index) => [index, next(index)]));
  try {
    while (pending.size > 0) {
      const { index, result } = await Promise.race(pending.values());
      // Asked to stop: nothing more is requested from the model.
      if (own.aborted) return;
      if (result.done) {
        pending.delete(index);
        continue;
      }
      pending.set(index, next(index));
      yield { index, chunk: result.value };
    }
  } finally {
    controller.abort();
    // A pending `next` may still reject because of the abort: nobody waits for it any more.
    await Promise.allSettled([...pending.values(), ...iterators.map((iterator) => iterator.return?.())]);
  }
}
