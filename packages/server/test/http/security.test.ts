import { afterAll, beforeAll, expect, test } from "vitest";
import { openPaths } from "../../src/http/app.js";
import { sampleRun } from "../store/samples.js";
import { createWorld, type World } from "./world.js";

let world: World;
let file: string;
beforeAll(async () => {
  world = await createWorld();
  file = await world.upload();
});
afterAll(() => world.close());

/** A path of the route with `id` for each parameter. */
const filled = (path: string, id: string): string => path.replaceAll(/\{\w+\+?\}/g, id);

test("SEC-4: nothing but / and /healthz answers without a key, on any route or method", async () => {
  const paths = [
    ...world.router.declared.map(({ method, path }) => [method, filled(path, "x")] as const),
    ["get", "/none"],
    ["options", "/v1/models"],
    ["head", "/api/status"],
    ["post", "/"],
  ] as const;
  for (const [method, path] of paths) {
    const { status, headers } = await world.send(method.toUpperCase(), path, { key: null });
    expect([method, path, status]).toEqual([method, path, 401]);
    expect(headers.get("www-authenticate")).toBe("Bearer");
  }
  for (const path of openPaths) expect((await world.send("GET", path, { key: null })).status).toBe(200);
});

test("keys: missing, unknown, expired and revoked ones have their codes; api-key works as well as Bearer", async () => {
  expect((await world.send("GET", "/v1/models", { key: null })).json.error).toMatchObject({
    code: "missing_api_key",
    type: "authentication_error",
  });
  expect((await world.send("GET", "/v1/models", { key: "fettle_wrong" })).json.error.code).toBe("invalid_api_key");
  expect((await world.send("GET", `/v1/models?api_key=${world.key}`, { key: null })).status).toBe(401);
  expect((await world.send("GET", "/v1/models", { key: null, headers: { "api-key": world.key } })).status).toBe(200);
  const made = await world.send("POST", "/api/keys", { body: { name: "ci", expires_in_days: 1 } });
  const { key, id, hint } = made.json;
  expect(key).toMatch(/^fettle_[\w-]{43}$/);
  expect(hint).not.toContain(key.slice(12, 40));
  expect((await world.send("GET", "/v1/models", { key })).status).toBe(200);
  const listed = await world.send("GET", "/api/keys");
  expect(listed.text).not.toContain(key);
  expect((await world.send("DELETE", `/api/keys/${id}`)).json.deleted).toBe(true);
  expect((await world.send("GET", "/v1/models", { key })).json.error.code).toBe("invalid_api_key");
  expect((await world.send("DELETE", `/api/keys/${id}`)).status).toBe(404);
  const short = (await world.send("POST", "/api/keys", { body: { name: "short", expires_in_days: 1 } })).json.key;
  world.advance(86_400_001);
  expect((await world.send("GET", "/v1/models", { key: short })).json.error.code).toBe("invalid_api_key");
});

test("SEC-2: a member may do everything but what the route table gives to admins", async () => {
  const member = await world.newKey("default", "member");
  for (const { method, path, role } of world.router.declared) {
    if (method === "delete") continue;
    const { status, json } = await world.send(method.toUpperCase(), filled(path, "x"), {
      key: member,
      ...(method === "post" && { body: {} }),
    });
    expect([path, status === 403 && json.error.code === "permission_denied"]).toEqual([path, role === "admin"]);
  }
  expect(world.router.declared.filter(({ role }) => role === "admin").map(({ path }) => path)).toEqual([
    "/api/keys",
    "/api/keys",
    "/api/keys/{key_id}",
  ]);
});

test("SEC-24: every id of one project is, to another, the same 404 as a random id", async () => {
  const b = await world.newKey("other", "admin");
  const run = sampleRun({ projectId: "default", trainingFile: file });
  await world.deps.store.runs.create(run, []);
  const upload = await world.send("POST", "/v1/uploads", {
    body: { filename: "x", purpose: "evals", bytes: 1, mime_type: "x" },
  });
  const keys = await world.send("GET", "/api/keys");
  const ids: Record<string, string> = {
    file_id: file,
    fine_tuning_job_id: run.id,
    run_id: run.id,
    upload_id: upload.json.id,
    key_id: keys.json.data[0].id,
    model: "ft:minilm:default:x:y",
  };
  const bodies: Record<string, object> = { complete: { part_ids: ["part_x"] } };
  const withIds = world.router.declared.filter(({ path }) => path.includes("{"));
  expect(withIds.length).toBeGreaterThan(15);
  for (const { method, path } of withIds) {
    const name = /\{(\w+)/.exec(path)?.[1] ?? "";
    const send = async (id: string) => {
      const form = new FormData();
      form.set("data", new Blob(["x"]));
      const body = path.endsWith("/parts") ? form : bodies[path.split("/").at(-1) ?? ""];
      const { status, text, headers } = await world.send(method.toUpperCase(), filled(path, id), {
        key: b,
        ...(body && { body }),
      });
      return {
        status,
        text: text.replaceAll(id, "ID").replaceAll(/req_\w+/g, "REQ"),
        retry: headers.get("x-should-retry"),
      };
    };
    const foreign = await send(ids[name] ?? "missing");
    expect([method, path, foreign.status]).toEqual([method, path, 404]);
    expect(foreign).toEqual(await send(`${name}-random`));
  }
  for (const list of ["/v1/files", "/v1/fine_tuning/jobs", "/api/runs", "/api/data"])
    expect((await world.send("GET", list, { key: b })).json.data).toEqual([]);
  const job = await world.send("POST", "/v1/fine_tuning/jobs", {
    key: b,
    body: { model: "minilm", training_file: file },
  });
  expect(job.json.error).toMatchObject({ code: "not_found", param: "training_file" });
});

test.each([
  ["a rebound name", { host: "evil.example" }, 403],
  ["a name that begins like ours", { host: "localhost.evil.example" }, 403],
  ["an empty host", { host: "" }, 403],
  ["a host with a path", { host: "localhost/../x" }, 403],
  ["a host with a user", { host: "localhost@evil.example" }, 403],
  ["localhost", { host: "localhost:4141" }, 200],
  ["an address", { host: "192.168.1.4:4141" }, 200],
  ["IPv6", { host: "[::1]:4141" }, 200],
  ["an allowed name", { host: "Fettle.example.org" }, 200],
  ["a foreign origin", { origin: "https://evil.example" }, 403],
  ["another port of localhost", { host: "localhost:4141", origin: "http://localhost:3000" }, 403],
  ["an opaque origin", { origin: "null" }, 403],
  ["its own origin", { host: "localhost:4141", origin: "http://localhost:4141" }, 200],
  ["a cross-site fetch", { "sec-fetch-site": "cross-site" }, 403],
  ["a same-site fetch", { "sec-fetch-site": "same-site" }, 403],
  ["a same-origin fetch", { "sec-fetch-site": "same-origin" }, 200],
])("SEC-4: %s", async (_name, headers, status) => {
  const answer = await world.send("GET", "/v1/models", { headers: headers as Record<string, string> });
  expect(answer.status).toBe(status);
  if (status === 403) expect(answer.json.error.code).toBe("foreign_origin");
});

test("SEC-4: a link from elsewhere opens the page, which holds no data, loads nothing and may not be framed", async () => {
  const page = await world.send("GET", "/", { key: null, headers: { "sec-fetch-site": "cross-site" } });
  expect(page.status).toBe(200);
  const policy = page.headers.get("content-security-policy") ?? "";
  expect(policy).toContain("default-src 'none'");
  expect(policy).toContain("frame-ancestors 'none'");
  expect(policy).not.toContain("unsafe");
  expect(page.text).not.toMatch(/https?:\/\//);
  expect(page.text).not.toContain("innerHTML");
  expect(page.text).not.toMatch(/ on\w+="/);
  expect(page.text).toMatch(/<html lang="en">[\s\S]*<label for="key">/);
});

test("every answer, refusals too, carries the security headers and a request id", async () => {
  for (const options of [{}, { key: null }, { headers: { host: "evil.example" } }]) {
    const { headers } = await world.send("GET", "/v1/models", options);
    expect(Object.fromEntries(headers)).toMatchObject({
      "x-content-type-options": "nosniff",
      "x-frame-options": "DENY",
      "referrer-policy": "no-referrer",
      "cache-control": "no-store",
    });
    expect(headers.get("x-request-id")).toMatch(/^req_\w{24}$/);
    expect(headers.get("access-control-allow-origin")).toBeNull();
    expect(headers.get("server")).toBeNull();
    expect(headers.get("x-powered-by")).toBeNull();
  }
});

test("unknown routes are 404, known ones with another method 405 with allow, all in OpenAI's error shape", async () => {
  expect((await world.send("GET", "/v1/nothing")).json.error).toMatchObject({
    code: "not_found",
    type: "invalid_request_error",
    param: null,
  });
  const wrong = await world.send("PUT", "/v1/files/abc");
  expect(wrong.status).toBe(405);
  expect(wrong.headers.get("allow")).toBe("GET, DELETE");
  expect(wrong.json.error).toMatchObject({
    code: "method_not_allowed",
    message: "PUT is not possible on /v1/files/abc: expected GET or DELETE.",
  });
  expect((await world.send("POST", "/healthz")).json.error.code).toBe("method_not_allowed");
});

test("SEC-18, SEC-19: a fault of ours says nothing but the request id, and no secret reaches the log", async () => {
  const { store } = world.deps;
  const list = store.models.list;
  store.models.list = () => Promise.reject(new Error("password=canary-7 in /var/lib/place"));
  const { status, json, text, headers } = await world.send("GET", "/v1/models", { headers: { "x-note": "canary-8" } });
  store.models.list = list;
  expect(status).toBe(500);
  expect(json.error).toMatchObject({
    code: "internal_error",
    type: "server_error",
    request_id: headers.get("x-request-id"),
  });
  expect(text).not.toContain("canary");
  expect(text).not.toContain("/var/lib");
  await world.send("POST", "/v1/chat/completions", {
    body: { model: "none-such", messages: [{ role: "user", content: "canary-9" }] },
  });
  await world.send("POST", "/v1/chat/completions", { body: '{"canary-10' });
  const logged = JSON.stringify(world.logged, (_key, value: unknown) =>
    value instanceof Error ? { message: value.message, stack: value.stack } : value,
  );
  for (const secret of [world.key, "canary-8", "canary-9", "canary-10"]) expect(logged).not.toContain(secret);
});

test("the status names no place on this machine", async () => {
  const { json, text } = await world.send("GET", "/api/status");
  expect(json).toMatchObject({ version: "0.1.0", database: "ok", models: [{ base: "minilm", adapters: 1 }] });
  expect(text).not.toContain("/secret/place");
});

test("SEC-13: JSON nested 200,000 deep is refused at once, also inside what is not looked at", async () => {
  const deep = `${"[".repeat(200_000)}${"]".repeat(200_000)}`;
  const started = performance.now();
  for (const body of [
    deep,
    `{"model":"minilm","input":${deep}}`,
    `{"model":"minilm","training_file":"x","extra":${deep}}`,
  ]) {
    for (const path of ["/v1/embeddings", "/v1/fine_tuning/jobs"]) {
      const { status, json } = await world.send("POST", path, {
        body,
        headers: { "content-type": "application/json" },
      });
      expect(status).toBe(400);
      expect(json.error).toMatchObject({ code: "value_out_of_range" });
      expect(json.error.message).toContain("nested more than 64 levels deep");
    }
  }
  expect(performance.now() - started).toBeLessThan(2000);
});

test("broken JSON is told with line and column; an empty body, a BOM and a form are told apart", async () => {
  const send = (body: string, type = "application/json") =>
    world.send("POST", "/api/classify", { body, headers: { "content-type": type } });
  expect((await send('{"model": "x",\n  "input" "y"}')).json.error.message).toContain("line 2, column 11");
  expect((await send("")).json.error).toMatchObject({ code: "invalid_request" });
  expect((await send('\ufeff{"model":"none","input":"x"}')).json.error.code).toBe("model_not_found");
  expect((await send("a=b", "application/x-www-form-urlencoded")).json.error).toMatchObject({
    param: "content-type",
    message: 'The content-type is "application/x-www-form-urlencoded": expected application/json.',
  });
  expect((await send("{}", "text/plain")).status).toBe(400);
  expect((await send("[1,2]")).json.error.message).toBe("The request body is a list of 2: expected an object.");
});

test("a JSON body of more than 20 MB is refused with or without a content-length", async () => {
  const big = `{"model":"minilm","input":"${"x".repeat(21 * 1024 * 1024)}"}`;
  const told = await world.send("POST", "/v1/embeddings", {
    body: "{}",
    headers: { "content-type": "application/json", "content-length": String(big.length) },
  });
  expect(told.json.error.code).toBe("body_too_large");
  const stream = new Blob([big]).stream();
  const streamed = await world.send("POST", "/v1/embeddings", {
    body: stream,
    headers: { "content-type": "application/json" },
  });
  expect(streamed.status).toBe(413);
});

test("SEC-20: numbers far outside their bounds are refused in every numeric field of the chat", async () => {
  const fields = [
    "temperature",
    "top_p",
    "n",
    "max_tokens",
    "max_completion_tokens",
    "top_logprobs",
    "frequency_penalty",
    "presence_penalty",
    "seed",
  ];
  for (const field of fields) {
    for (const value of ["1e999", "9007199254740993", "-1e9", '"1"', "[]"]) {
      const body = `{"model":"minilm","messages":[{"role":"user","content":"x"}],"${field}":${value}}`;
      const { status, json } = await world.send("POST", "/v1/chat/completions", {
        body,
        headers: { "content-type": "application/json" },
      });
      if (field === "seed" && value === "-1e9") continue;
      expect([field, value, status]).toEqual([field, value, 400]);
      expect(json.error.param).toBe(field);
    }
  }
});

test("SEC-1: hostile ids reach no file on any route", async () => {
  const corpus = [
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e%2f",
    "%252e%252e%252f",
    "..%5c..%5c",
    "%00",
    "file:%2f%2f%2fetc%2fpasswd",
    "C:%5c",
    `${"a".repeat(5000)}`,
    "%ff%fe",
    "%E2%80%AE",
    "'%20or%201=1--",
  ];
  for (const { method, path } of world.router.declared.filter((route) => route.path.includes("{"))) {
    for (const id of corpus) {
      const { status } = await world.send(
        method.toUpperCase(),
        filled(path, id),
        method === "post" ? { body: { part_ids: ["x"] } } : {},
      );
      expect([method, path, id.slice(0, 30), [400, 404].includes(status)]).toEqual([
        method,
        path,
        id.slice(0, 30),
        true,
      ]);
    }
  }
});

test("prototype keys in a body are unknown fields, not properties of every object", async () => {
  const { json } = await world.send("POST", "/api/runs", {
    body: '{"__proto__":{"polluted":1},"model":"minilm","training_file":"x"}',
    headers: { "content-type": "application/json" },
  });
  expect(json.error.code).toMatch(/unknown_field|not_found/);
  expect(({} as { polluted?: number }).polluted).toBeUndefined();
});
