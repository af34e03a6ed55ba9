/** Server-sent events out of an async iterable. A client that goes away stops the iterable at once. */

const encoder = new TextEncoder();

export interface SseOptions {
  /** The frame to send when `frames` fails after the answer has begun; the status is long gone. */
  onError: (error: unknown) => string;
  /** Aborts whatever feeds `frames`. */
  abort: AbortController;
}

export function sseResponse(frames: AsyncIterable<string>, { onError, abort }: SseOptions): Response {
  const iterator = frames[Symbol.asyncIterator]();
  const body = new ReadableStream<Uint8Array>({
    async pull(controller) {
      try {
        const next = await iterator.next();
        if (next.done) controller.close();
        else controller.enqueue(encoder.encode(next.value));
      } catch (error) {
        if (!abort.signal.aborted) controller.enqueue(encoder.encode(onError(error)));
        controller.close();
      }
    },
    async cancel() {
      abort.abort();
      await iterator.return?.();
    },
  });
  return new Response(body, {
    headers: {
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-store",
      "x-accel-buffering": "no",
    },
  });
}

/** One unnamed event; `data` never holds a line break because JSON escapes them. */
export const dataFrame = (data: unknown): string => `data: ${JSON.stringify(data)}\n\n`;

/**
 * Waits for the first value, so that a refusal (429, too long a prompt) is still an HTTP status and not a broken
 * stream; then gives everything, that value first.
 */
export async function primed<T>(source: AsyncIterable<T>): Promise<AsyncIterable<T>> {
  const iterator = source[Symbol.asyncIterator]();
  const first = await iterator.next();
  return {
    async *[Symbol.asyncIterator]() {
      try {
        for (let next = first; !next.done; next = await iterator.next()) yield next.value;
      } finally {
        await iterator.return?.();
      }
    },
  };
}
