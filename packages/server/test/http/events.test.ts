import { runEventSchema, runObjectSchema } from "@fettle/contract";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Listening, listen } from "../../src/http/listen.js";
import { eventually, sampleEvent, sampleRun } from "../store/samples.js";
import { createWorld, type Json, type World } from "./world.js";

let world: World;
let server: Listening;
let file: string;
beforeAll(async () => {
  world = await createWorld();
  server = await listen({ host: "127.0.0.1", port: 0 });
  server.open(world.router);
  file = await world.upload();
});
afterAll(async () => {
  await server.close(100);
  await world.close();
});

async function newRun(messages: string[]): Promise<string> {
  const run = sampleRun({ projectId: "default", trainingFile: file });
  await world.deps.store.runs.create(
    run,
    messages.map((message, index) => sampleEvent(`first:${index}`, { message })),
  );
  return run.id;
}
const say = (runId: string, message: string, end = false) =>
  world.deps.store.runs.update(runId, (run) => ({
    run: end ? { ...run, status: "cancelled", finishedAt: 1_700_000_000_000 } : run,
    events: [sampleEvent(`said:${message}`, { message })],
  }));

/** Reads a live stream into a list of frames that grows. */
function follow(path: string, headers: Record<string, string> = {}, key = world.key) {
  const controller = new AbortController();
  const frames: { id?: string; event?: string; data?: string }[] = [];
  const state = { frames, status: 0, closed: false, stop: () => controller.abort() };
  const reading = async (): Promise<void> => {
    const response = await fetch(`${server.url}${path}`, {
      headers: { authorization: `Bearer ${key}`, accept: "text/event-stream", ...headers },
      signal: controller.signal,
    });
    state.status = response.status;
    let rest = "";
    const decoder = new TextDecoder();
    for await (const chunk of response.body ?? []) {
      const parts = (rest + decoder.decode(chunk, { stream: true })).split("\n\n");
      rest = parts.pop() ?? "";
      for (const part of parts)
        frames.push(Object.fromEntries(part.split("\n").map((line) => line.split(/: (.*)/s).slice(0, 2))));
    }
  };
  reading()
    .catch(() => undefined)
    .finally(() => {
      state.closed = true;
    });
  return state;
}
const messagesOf = (stream: ReturnType<typeof follow>): string[] =>
  stream.frames
    .filter((frame) => frame.event === "run.event")
    .map((frame) => runEventSchema.parse(JSON.parse(frame.data ?? "")).message);

test("a live stream gives what was, then what comes, then the ended run, and closes", async () => {
  const run = await newRun(["one", "two"]);
  const stream = follow(`/api/runs/${run}/events`);
  await eventually("the first events", () => messagesOf(stream).length === 2);
  await say(run, "three");
  await eventually("the live event", () => messagesOf(stream).length === 3);
  await say(run, "four", true);
  await eventually("the end", () => stream.closed);
  expect(messagesOf(stream)).toEqual(["one", "two", "three", "four"]);
  expect(stream.frames.filter((frame) => frame.id).map((frame) => frame.id)).toEqual(["1", "2", "3", "4"]);
  const ended = stream.frames.find((frame) => frame.event === "run.ended");
  expect(runObjectSchema.parse(JSON.parse(ended?.data ?? "")).status).toBe("cancelled");
});

test("Last-Event-ID goes on after the last event seen; so does since", async () => {
  const run = await newRun(["one", "two", "three"]);
  await say(run, "four", true);
  const resumed = follow(`/api/runs/${run}/events`, { "last-event-id": "2" });
  await eventually("the end", () => resumed.closed);
  expect(messagesOf(resumed)).toEqual(["three", "four"]);
  const polled = await world.send("GET", `/api/runs/${run}/events?since=1&limit=2`);
  expect(polled.json.data.map((event: Json) => event.message)).toEqual(["two", "three"]);
  expect(polled.json.has_more).toBe(true);
  expect(
    (
      await world.send("GET", `/api/runs/${run}/events`, {
        headers: { accept: "text/event-stream", "last-event-id": "abc" },
      })
    ).json.error.code,
  ).toBe("invalid_request");
});

test("API-6: a stream ends soon after its key is revoked", async () => {
  const run = await newRun(["one"]);
  const made = await world.send("POST", "/api/keys", { body: { name: "short-lived" } });
  const stream = follow(`/api/runs/${run}/events`, {}, made.json.key);
  await eventually("the first event", () => messagesOf(stream).length === 1);
  await world.send("DELETE", `/api/keys/${made.json.id}`);
  await eventually("the end of the stream", () => stream.closed);
  expect(stream.frames.at(-1)).toMatchObject({ event: "error" });
});

test("a client that leaves is not followed any longer", async () => {
  const run = await newRun(["one"]);
  let listeners = 0;
  const { runs } = world.deps.store;
  const onChange = runs.onChange;
  runs.onChange = (fn) => {
    const stop = onChange(fn);
    listeners += 1;
    return () => {
      listeners -= 1;
      stop();
    };
  };
  const stream = follow(`/api/runs/${run}/events`);
  await eventually("the subscription", () => listeners === 1 && messagesOf(stream).length === 1);
  stream.stop();
  await eventually("its end", () => listeners === 0);
  runs.onChange = onChange;
});

test("a stream of an unknown run is a 404, not a stream", async () => {
  const stream = follow("/api/runs/ftjob-none/events");
  await eventually("the answer", () => stream.closed);
  expect(stream.status).toBe(404);
});
