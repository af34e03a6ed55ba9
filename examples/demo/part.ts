/** What each part of the demo is given, and what it reports. */
import type OpenAI from "openai";
import type { Narrator } from "./narrator.js";
import type { Python } from "./python.js";

export interface Stage {
  client: OpenAI;
  /** Address without `/v1`, and the key: for Fettle's own routes. */
  server: { url: string; apiKey: string };
  python: Python;
  talk: Narrator;
  /** Downloads are kept here between runs. */
  cache: string;
  signal: AbortSignal;
}

export interface PartReport {
  part: "encoder" | "decoder" | "seq2seq";
  base_model: string;
  tuned_model: string;
  job: string;
  rows: { train: number; test: number };
  /** By name of the candidate: what it scored. */
  results: Record<string, unknown>;
  seconds: Record<string, number>;
  verdict: string;
  /** One real request to the tuned model, and its answer. */
  example: { request: string; answer: string };
}

/** Names and values of the time that passes: `laps.end("train")` closes what began at the last end. */
export class Laps {
  readonly seconds: Record<string, number> = {};
  private last = performance.now();

  end(name: string): void {
    const now = performance.now();
    this.seconds[name] = Math.round((now - this.last) / 100) / 10;
    this.last = now;
  }
}
