import { request } from "node:http";
import { connect } from "node:net";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Listening, listen } from "../../src/http/listen.js";
import { eventually } from "../store/samples.js";
import { createWorld, type World } from "./world.js";

let world: World;
let server: Listening;
beforeAll(async () => {
  world = await createWorld();
  server = await listen({ host: "127.0.0.1", port: 0 });
});
afterAll(async () => {
  await server.close(100);
  await world.close();
});

test("before it is open the server says so; then it answers", async () => {
  expect(await (await fetch(`${server.url}/healthz`)).json()).toEqual({ status: "starting" });
  const early = await fetch(`${server.url}/v1/models`);
  expect(early.status).toBe(503);
  expect(early.headers.get("x-should-retry")).toBe("true");
  expect(await early.json()).toMatchObject({ error: { code: "database_unavailable", type: "server_error" } });
  server.open(world.router);
  expect(await (await fetch(`${server.url}/healthz`)).json()).toEqual({ status: "ok" });
});

test("a port in use is told with its number and the way out", async () => {
  const port = Number(new URL(server.url).port);
  await expect(listen({ host: "127.0.0.1", port })).rejects.toMatchObject({
    code: "port_in_use",
    message: `Port ${port} on 127.0.0.1 is taken by another program. Stop it, or choose a free port: FETTLE_PORT=${port + 1}.`,
  });
});

test("an address that is not ours is told", async () => {
  await expect(listen({ host: "192.0.2.1", port: 0 })).rejects.toMatchObject({ code: "config_invalid" });
});

test("a client that leaves in the middle stops the generation, streamed or not", async () => {
  for (const stream of [true, false]) {
    world.inference.hold = new Promise(() => undefined);
    const controller = new AbortController();
    const body = JSON.stringify({
      model: "smollm2-135m-instruct",
      stream,
      messages: [{ role: "user", content: "Hi" }],
    });
    const call = fetch(`${server.url}/v1/chat/completions`, {
      method: "POST",
      signal: controller.signal,
      headers: { authorization: `Bearer ${world.key}`, "content-type": "application/json" },
      body,
    });
    const left = call.then((response) => response.text()).catch(() => "left");
    await eventually("the generation", () => world.inference.running === 1);
    controller.abort();
    expect(await left).toBe("left");
    await eventually("its end", () => world.inference.running === 0);
  }
  world.inference.hold = null;
});

test("an upload cut off in the middle leaves no file, and the server goes on", async () => {
  const before = (await world.send("GET", "/v1/files")).json.data.length;
  const cut = request(`${server.url}/v1/files`, {
    method: "POST",
    headers: {
      authorization: `Bearer ${world.key}`,
      "content-type": "multipart/form-data; boundary=b",
      "content-length": "1000000",
    },
  });
  cut.on("error", () => undefined);
  cut.write('--b\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{"messages"');
  await new Promise((resolve) => cut.flushHeaders() ?? setImmediate(resolve));
  cut.destroy();
  await eventually("an answering server", async () => (await fetch(`${server.url}/healthz`)).ok);
  expect((await world.send("GET", "/v1/files")).json.data).toHaveLength(before);
});

test("a chunked upload without content-length is taken", async () => {
  const text =
    '--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nevals\r\n--b\r\ncontent-disposition: form-data; name="file"; filename="a.txt"\r\n\r\nhello\r\n--b--\r\n';
  const body = new Blob([text]).stream();
  const response = await fetch(`${server.url}/v1/files`, {
    method: "POST",
    headers: { authorization: `Bearer ${world.key}`, "content-type": "multipart/form-data; boundary=b" },
    body,
    duplex: "half",
  } as RequestInit);
  expect(await response.json()).toMatchObject({ bytes: 5, filename: "a.txt", status: "processed" });
});

/** Sends bytes as they are and gives the first line of the answer. */
function raw(text: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(Number(new URL(server.url).port), "127.0.0.1", () => socket.end(text));
    let answer = "";
    socket.on("data", (chunk) => {
      answer += chunk.toString("latin1");
    });
    socket.on("close", () => resolve(answer.split("\r\n")[0] ?? ""));
    socket.on("error", reject);
  });
}

test("API-23: smuggled and malformed requests are refused by the parser", async () => {
  const post = `POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${world.key}\r\n`;
  expect(await raw(`${post}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`)).toContain("400");
  expect(await raw(`${post}Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd`)).toContain("400");
  expect(await raw("GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n")).toContain("403");
  expect(await raw("GET / HTTP/1.1\r\n\r\n")).toContain("400");
});
