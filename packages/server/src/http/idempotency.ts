/**
 * A create request that is sent again must not create twice.
 *
 * With `Idempotency-Key` the caller says which requests are one. OpenAI's SDKs send no such header, but mark each retry
 * with `X-Stainless-Retry-Count` >= 1: such a request is the last one with the same key, route and body of the past
 * 10 to 20 minutes. A first attempt (count 0) is always new, so the n-th identical request gets the n-th slot; a retry
 * looks for the last slot taken.
 */
import { createHash } from "node:crypto";
import type { Context } from "hono";
import { AppError } from "../domain/error.js";
import type { HttpDeps, HttpEnv } from "./deps.js";

const windowMs = 10 * 60_000;
/** More identical requests than this in one window are run without a memory of them. */
const maxSlots = 50;

export interface Repeatable {
  context: Context<HttpEnv>;
  route: string;
  /** The body, or what stands for it. */
  content: string;
}
type OnceDeps = Pick<HttpDeps, "store" | "clock" | "log">;
type Run = () => Promise<Response>;

const hash = (text: string): string => createHash("sha256").update(text).digest("hex");

export async function once(deps: OnceDeps, request: Repeatable, run: Run): Promise<Response> {
  const explicit = request.context.req.header("idempotency-key");
  if (explicit !== undefined) return onceByKey(deps, { ...request, key: explicit }, run);
  const count = Number(request.context.req.header("x-stainless-retry-count") ?? Number.NaN);
  return Number.isNaN(count) ? run() : onceByContent(deps, { ...request, retried: count > 0 }, run);
}

async function onceByKey(deps: OnceDeps, request: Repeatable & { key: string }, run: Run): Promise<Response> {
  const { key, context, route } = request;
  if (key.length < 1 || key.length > 255) {
    throw new AppError(
      "value_out_of_range",
      `The header Idempotency-Key has ${key.length} characters: expected 1 to 255.`,
      { param: "Idempotency-Key" },
    );
  }
  const { projectId, keyId } = context.var.caller;
  const slot = { projectId, key: `key:${keyId}:${hash(`${route}\n${key}`)}`, bodyHash: hash(request.content) };
  const claim = await deps.store.idempotency.begin(slot.projectId, slot.key, {
    bodyHash: slot.bodyHash,
    now: deps.clock.now(),
  });
  if (claim.state === "replay") return replay(claim);
  if (claim.state === "mismatch") {
    throw new AppError(
      "idempotency_mismatch",
      `The Idempotency-Key "${key.slice(0, 64)}" came before with another body. Use a new key for a new request.`,
      { param: "Idempotency-Key" },
    );
  }
  if (claim.state === "busy") throw stillRunning();
  return runAndRemember(deps, slot, run);
}

interface Slot {
  projectId: string;
  key: string;
  bodyHash: string;
}

async function onceByContent(deps: OnceDeps, request: Repeatable & { retried: boolean }, run: Run): Promise<Response> {
  const { projectId, keyId } = request.context.var.caller;
  const bodyHash = hash(request.content);
  const window = Math.floor(deps.clock.now() / windowMs);
  const slotAt = (bucket: number, index: number): Slot => ({
    projectId,
    key: `retry:${keyId}:${hash(`${request.route}\n${bodyHash}`)}:${bucket}:${index}`,
    bodyHash,
  });
  const now = await takeSlot(deps, (index) => slotAt(window, index));
  if (now === null) return run();
  if (!request.retried) return runAndRemember(deps, now.free, run);
  const earlier = now.last ?? (await lastSlot(deps, (index) => slotAt(window - 1, index)));
  if (earlier === null) return runAndRemember(deps, now.free, run);
  await deps.store.idempotency.forget(projectId, now.free.key);
  if (earlier.state === "replay") return replay(earlier);
  throw stillRunning();
}

type Taken = { state: "replay"; status: number; body: string } | { state: "busy" };

/** Claims the first free slot and tells what the last taken one holds; null when all are taken. */
async function takeSlot(
  deps: OnceDeps,
  slotAt: (index: number) => Slot,
): Promise<{ free: Slot; last: Taken | null } | null> {
  let last: Taken | null = null;
  for (let index = 0; index < maxSlots; index += 1) {
    const slot = slotAt(index);
    const claim = await deps.store.idempotency.begin(slot.projectId, slot.key, {
      bodyHash: slot.bodyHash,
      now: deps.clock.now(),
    });
    if (claim.state === "new") return { free: slot, last };
    if (claim.state !== "mismatch") last = claim;
  }
  return null;
}

async function lastSlot(deps: OnceDeps, slotAt: (index: number) => Slot): Promise<Taken | null> {
  const taken = await takeSlot(deps, slotAt);
  if (taken === null) return null;
  await deps.store.idempotency.forget(taken.free.projectId, taken.free.key);
  return taken.last;
}

/** Only success is remembered: a failed request had no effect, and the next attempt may succeed. */
async function runAndRemember(deps: OnceDeps, slot: Slot, run: Run): Promise<Response> {
  let response: Response;
  try {
    response = await run();
  } catch (error) {
    await deps.store.idempotency.forget(slot.projectId, slot.key);
    throw error;
  }
  const body = await response.clone().text();
  await deps.store.idempotency.finish(slot.projectId, slot.key, { status: response.status, body });
  return response;
}

const replay = (answer: { status: number; body: string }): Response =>
  new Response(answer.body, {
    status: answer.status,
    headers: { "content-type": "application/json", "idempotent-replayed": "true" },
  });

/** The one conflict worth trying again: the first attempt's answer is about to come. */
const stillRunning = (): AppError =>
  new AppError("conflict", "The first attempt of this request is still at work. Try again in a second.", {
    details: { retry: true, retryAfterSeconds: 1 },
  });
