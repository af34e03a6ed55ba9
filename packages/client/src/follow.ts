/** Following what goes on for long. */
import { isFinal } from "./runs.js";

const pollMs = 1000;
/** A server that stays away for half a minute is told of. */
const maxMisses = 30;

/** How it stands, about once a second, until `isOver`; the last is how it ended. Goes on over restarts of the server. */
export async function* followed<T>(
  get: () => Promise<T>,
  isOver: (now: T) => boolean,
  signal: AbortSignal | undefined,
): AsyncGenerator<T> {
  for (let misses = 0; ; ) {
    signal?.throwIfAborted();
    try {
      const now = await get();
      misses = 0;
      yield now;
      if (isOver(now)) return;
    } catch (error) {
      misses += 1;
      if (isFinal(error) || misses > maxMisses) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, pollMs));
  }
}
