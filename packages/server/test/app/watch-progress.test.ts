/** From heartbeats to "it stands still": once told, once ended, and never for work that is slow but goes on. */
import type { TrainerEvent } from "@fettle/contract";
import { describe, expect, it } from "vitest";
import { type Advance, followAdvance, noAdvance, stoodTooLong } from "../../src/app/watch-progress.js";
import { defaultTimes } from "../../src/app/watch.js";

type Beat = Partial<Extract<TrainerEvent, { type: "heartbeat" }>>;

/** Events three seconds apart, numbered on. */
class Trainer {
  advance: Advance = noAdvance;
  readonly said: string[] = [];
  private seq = 0;
  attempt = 1;

  beat(idleSeconds: number, change: Beat = {}): this {
    return this.writes({
      type: "heartbeat",
      step: 1,
      rss_bytes: 1,
      phase: "training",
      idle_s: idleSeconds,
      expected_s: 1,
      ...change,
    });
  }
  writes(event: Record<string, unknown>): this {
    this.seq += 1;
    const whole = { seq: this.seq, attempt: this.attempt, time: this.seq * 3, ...event } as TrainerEvent;
    const { advance, notices } = followAdvance(this.advance, [whole], defaultTimes);
    this.advance = advance;
    this.said.push(...notices.map(({ key, level, message }) => `${key} ${level}: ${message}`));
    return this;
  }
  /** Heartbeats of a trainer that stands, up to this many seconds. */
  standsFor(seconds: number, change: Beat = {}): this {
    for (let idle = 0; idle <= seconds; idle += 3) this.beat(idle, change);
    return this;
  }
  get ended(): boolean {
    return stoodTooLong(this.advance, this.attempt, defaultTimes) !== null;
  }
}

describe("a trainer whose heartbeats go on", () => {
  it("is told of within 15 s when its work stands, once, and once when it goes on", () => {
    const trainer = new Trainer().standsFor(60);
    expect(trainer.said).toEqual([
      "idle:5 warn: No progress for 12 s while training on a batch. The trainer is alive; after 120 s it is ended and the run goes on from its last checkpoint.",
    ]);
    trainer.beat(1).beat(0.5);
    expect(trainer.said.slice(1)).toEqual(["idle-over:5 info: The trainer makes progress again, after 62 s."]);
    // A heartbeat every 3 s, a look every 0.4 s.
    expect(defaultTimes.idleNoticeMs + 3_000 + defaultTimes.pollMs).toBeLessThan(15_000);
  });

  it.each([
    ["a batch like those before", { expected_s: 2 }, 120],
    ["a large model on a processor: ten times its own pace", { expected_s: 42 }, 420],
    ["the first batch, whose pace nobody knows", { expected_s: null }, 2_700],
    ["a load", { phase: "loading", expected_s: null }, 2_700],
    [
      "the proof in a fresh process, which may take 30 minutes by itself",
      { phase: "verifying", expected_s: null },
      2_700,
    ],
  ] as const)("is ended at %s", (_, change, seconds) => {
    expect(new Trainer().standsFor(seconds - 3, change).ended).toBe(false);
    expect(new Trainer().standsFor(seconds, change).ended).toBe(true);
  });

  it("slow in every batch, but going on, is neither ended nor remarked on", () => {
    const trainer = new Trainer();
    for (let batch = 0; batch < 20; batch += 1) trainer.standsFor(48, { expected_s: 50 });
    expect(trainer.said).toEqual([]);
    expect(trainer.ended).toBe(false);
  });

  it("that wrote anything else got on by that", () => {
    const trainer = new Trainer().standsFor(119).writes({ type: "log", level: "info", message: "" });
    expect(trainer.advance.idle).toBeNull();
    expect(trainer.said.at(-1)).toMatch(/^idle-over:5 info/);
  });

  it("keeps its pace over attempts, and nothing else of them", () => {
    const trainer = new Trainer().standsFor(120, { expected_s: 2 });
    trainer.attempt = 2;
    expect(trainer.ended).toBe(false);
    trainer.beat(1, { expected_s: null });
    expect(trainer.said).toHaveLength(1);
    expect(trainer.standsFor(117, { expected_s: null }).ended).toBe(false);
    expect(trainer.beat(120, { expected_s: null }).ended).toBe(true);
    expect(trainer.said).toHaveLength(2);
  });

  it("read twice says the same once, and a line that is no event says nothing", () => {
    const events = Array.from({ length: 8 }, (_, index) => ({
      seq: index + 1,
      attempt: 1,
      time: index * 3,
      type: "heartbeat" as const,
      step: 1,
      rss_bytes: 1,
      phase: "saving" as const,
      idle_s: index * 3,
      expected_s: null,
    }));
    const torn = { seq: 0, attempt: 0, time: 0, type: "log" as const, level: "warn" as const, message: "" };
    const first = followAdvance(noAdvance, [...events, torn], defaultTimes);
    const again = followAdvance(first.advance, events, defaultTimes);
    expect(first.notices).toHaveLength(1);
    expect(again).toEqual({ advance: first.advance, notices: [] });
  });

  it("older than its marks is left to the silence limit", () => {
    const trainer = new Trainer().writes({ type: "heartbeat", step: 1, rss_bytes: 1 });
    expect([trainer.advance.idle, trainer.said]).toEqual([null, []]);
  });
});
