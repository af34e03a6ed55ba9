/** Time, randomness and the log of this process. */
import { randomBytes } from "node:crypto";
import { pino } from "pino";
import type { Clock, Ids, Log } from "./app/ports.js";

export const systemClock: Clock = {
  now: () => Date.now(),
  every(ms, fn) {
    const timer = setInterval(fn, ms);
    return () => clearInterval(timer);
  },
  sleep: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
};

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const idLength = 24;

/** 24 characters of base62 are 142 bits. Bytes of 248 and more are thrown away: a remainder would favour some letters. */
function randomText(): string {
  let text = "";
  while (text.length < idLength) {
    for (const byte of randomBytes(32)) {
      if (byte < 248 && text.length < idLength) text += base62[byte % 62];
    }
  }
  return text;
}

export const systemIds: Ids = { make: (prefix) => prefix + randomText(), bytes: (n) => randomBytes(n) };

/** JSON lines on stderr. Keys and passwords never get in: what might hold them is removed by name. */
export function systemLog(level: string): Log {
  return pino(
    {
      level,
      redact: {
        paths: ["authorization", "*.authorization", "secret", "*.secret", "key_secret", "databaseUrl"],
        censor: "[removed]",
      },
    },
    pino.destination({ dest: 2, sync: false }),
  );
}
