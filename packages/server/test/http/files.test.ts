import { createHash } from "node:crypto";
import { afterAll, beforeAll, expect, test } from "vitest";
import { createWorld, type World } from "./world.js";

let world: World;
beforeAll(async () => {
  world = await createWorld();
});
afterAll(() => world.close());

const rows = '{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yo"}]}\n';

test("a file uploaded with the purpose after the file is the same as with the purpose before it", async () => {
  const after = new FormData();
  after.set("file", new File([rows], "a.jsonl"));
  after.set("purpose", "fine-tune");
  const before = new FormData();
  before.set("purpose", "fine-tune");
  before.set("file", new File([rows], "a.jsonl"));
  for (const form of [after, before]) {
    const { status, json } = await world.send("POST", "/v1/files", { body: form });
    expect(status).toBe(200);
    expect(json).toMatchObject({
      object: "file",
      bytes: rows.length,
      filename: "a.jsonl",
      purpose: "fine-tune",
      status: "uploaded",
    });
    expect((await world.send("GET", `/v1/files/${json.id}`)).json.status).toBe("processed");
    const content = await world.send("GET", `/v1/files/${json.id}/content`);
    expect(content.text).toBe(rows);
    expect(content.headers.get("content-disposition")).toContain("attachment");
  }
});

test("bracketed multipart names set the expiry", async () => {
  const form = new FormData();
  form.set("expires_after[anchor]", "created_at");
  form.set("expires_after[seconds]", "3600");
  form.set("purpose", "user_data");
  form.set("file", new File(["x"], "x.txt"));
  const { json } = await world.send("POST", "/v1/files", { body: form });
  expect(json.expires_at - json.created_at).toBe(3600);
  form.set("expires_after[seconds]", "3599");
  const refused = await world.send("POST", "/v1/files", { body: form });
  expect(refused.json.error).toMatchObject({
    code: "value_out_of_range",
    param: "expires_after.seconds",
    message: '`expires_after.seconds` is "3599": expected at least 3600.',
  });
});

test("an empty file is refused with code file_empty", async () => {
  const form = new FormData();
  form.set("purpose", "fine-tune");
  form.set("file", new File([], "empty.jsonl"));
  const { status, json } = await world.send("POST", "/v1/files", { body: form });
  expect(status).toBe(400);
  expect(json.error).toMatchObject({
    code: "file_empty",
    param: "file",
    message: 'The file "empty.jsonl" has 0 bytes: expected at least one row. Check the path you upload from.',
  });
});

test("a form without a file, with a wrong purpose, with an unknown field, or that is no form says what was expected", async () => {
  const none = new FormData();
  none.set("purpose", "fine-tune");
  expect((await world.send("POST", "/v1/files", { body: none })).json.error.message).toContain(
    "expected a part named `file`",
  );
  const wrong = new FormData();
  wrong.set("purpose", "finetune");
  wrong.set("file", new File(["x"], "x"));
  expect((await world.send("POST", "/v1/files", { body: wrong })).json.error).toMatchObject({
    code: "invalid_request",
    param: "purpose",
  });
  const extra = new FormData();
  extra.set("purpos", "fine-tune");
  extra.set("purpose", "fine-tune");
  extra.set("file", new File(["x"], "x"));
  expect((await world.send("POST", "/v1/files", { body: extra })).json.error).toMatchObject({
    code: "unknown_field",
    message: '`purpos` is not known. Did you mean "purpose"?',
  });
  expect((await world.send("POST", "/v1/files", { body: { file: "x" } })).json.error.message).toContain(
    "expected multipart/form-data",
  );
  const unbound = await world.send("POST", "/v1/files", {
    body: "x",
    headers: { "content-type": "multipart/form-data" },
  });
  expect(unbound.json.error.message).toContain("boundary");
});

test("a form that ends early is refused and leaves nothing on the disk", async () => {
  const text = '--b\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{"messages"';
  const { status, json } = await world.send("POST", "/v1/files", {
    body: text,
    headers: { "content-type": "multipart/form-data; boundary=b" },
  });
  expect(status).toBe(400);
  expect(json.error.message).toContain("ends early");
});

test("a path in a file name is only a label", async () => {
  const text =
    '--b\r\ncontent-disposition: form-data; name="file"; filename="../../etc/pass\\u0000wd"\r\n\r\nabc\r\n--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n--b--\r\n';
  const { json } = await world.send("POST", "/v1/files", {
    body: text,
    headers: { "content-type": "multipart/form-data; boundary=b" },
  });
  expect(json.filename).not.toContain("/");
  expect((await world.send("GET", `/v1/files/${json.id}/content`)).text).toBe("abc");
});

test("files are listed newest first, paged by the last id, filtered by purpose", async () => {
  const fresh = await createWorld();
  try {
    const ids: string[] = [];
    for (let index = 0; index < 5; index += 1) ids.unshift(await fresh.upload(`row ${index}`));
    await fresh.upload("other", { purpose: "evals" });
    const seen: string[] = [];
    let after = "";
    for (let more = true; more; ) {
      const { json } = await fresh.send("GET", `/v1/files?purpose=fine-tune&limit=2${after}`);
      seen.push(...json.data.map((file: { id: string }) => file.id));
      more = json.has_more;
      after = `&after=${json.last_id}`;
    }
    expect(seen).toEqual(ids);
    expect((await fresh.send("GET", "/v1/files?limit=0")).json.error).toMatchObject({
      code: "value_out_of_range",
      message: '`limit` of the query is "0": expected at least 1.',
    });
  } finally {
    await fresh.close();
  }
});

test("a deleted file is gone for every route", async () => {
  const id = await world.upload();
  expect((await world.send("DELETE", `/v1/files/${id}`)).json).toEqual({ id, object: "file", deleted: true });
  for (const [method, path] of [
    ["GET", ""],
    ["GET", "/content"],
    ["DELETE", ""],
  ] as const) {
    expect((await world.send(method, `/v1/files/${id}${path}`)).json.error.code).toBe("not_found");
  }
});

test("a file an unfinished run reads cannot be deleted", async () => {
  const id = await world.upload();
  await world.send("POST", "/v1/fine_tuning/jobs", { body: { model: "smollm2-135m-instruct", training_file: id } });
  const { status, json, headers } = await world.send("DELETE", `/v1/files/${id}`);
  expect(status).toBe(409);
  expect(json.error.code).toBe("file_in_use");
  expect(headers.get("x-should-retry")).toBe("false");
});

async function addPart(uploadId: string, text: string): Promise<string> {
  const form = new FormData();
  form.set("data", new Blob([text]));
  return (await world.send("POST", `/v1/uploads/${uploadId}/parts`, { body: form })).json.id;
}
const begin = async (bytes: number): Promise<string> =>
  (
    await world.send("POST", "/v1/uploads", {
      body: { filename: "big.jsonl", purpose: "fine-tune", bytes, mime_type: "text/jsonl" },
    })
  ).json.id;

test("parts are joined in the order of part_ids, and completing again gives the same file", async () => {
  const id = await begin(10);
  const second = await addPart(id, "world");
  const first = await addPart(id, "hello");
  const md5 = createHash("md5").update("helloworld").digest("hex");
  const done = await world.send("POST", `/v1/uploads/${id}/complete`, { body: { part_ids: [first, second], md5 } });
  expect(done.json).toMatchObject({ status: "completed", file: { bytes: 10, filename: "big.jsonl" } });
  expect((await world.send("GET", `/v1/files/${done.json.file.id}/content`)).text).toBe("helloworld");
  const again = await world.send("POST", `/v1/uploads/${id}/complete`, { body: { part_ids: [first, second] } });
  expect(again.json.file.id).toBe(done.json.file.id);
});

test("an upload whose parts do not add up is refused and stays open", async () => {
  const id = await begin(10);
  const part = await addPart(id, "hello");
  const complete = (body: object) => world.send("POST", `/v1/uploads/${id}/complete`, { body });
  expect((await complete({ part_ids: [part] })).json.error).toMatchObject({
    code: "upload_incomplete",
    message: `Upload ${id}: the parts have 5 bytes together, you promised 10. Send what is missing, then complete again.`,
  });
  expect((await complete({ part_ids: [part, part] })).json.error.message).toContain("named twice");
  expect((await complete({ part_ids: ["part_none"] })).json.error).toMatchObject({
    code: "upload_incomplete",
    param: "part_ids[0]",
  });
  const rest = await addPart(id, "again");
  expect((await complete({ part_ids: [part, rest], md5: "0".repeat(32) })).json.error).toMatchObject({
    code: "upload_incomplete",
    param: "md5",
  });
  expect((await complete({ part_ids: [part, rest] })).status).toBe(200);
});

test("a cancelled or expired upload takes no more parts", async () => {
  const cancelled = await begin(5);
  expect((await world.send("POST", `/v1/uploads/${cancelled}/cancel`)).json.status).toBe("cancelled");
  const form = new FormData();
  form.set("data", new Blob(["hello"]));
  const refused = await world.send("POST", `/v1/uploads/${cancelled}/parts`, { body: form });
  expect(refused.status).toBe(409);
  expect(refused.json.error).toMatchObject({ code: "conflict" });
  const other = await createWorld();
  try {
    const { json } = await other.send("POST", "/v1/uploads", {
      body: { filename: "x", purpose: "fine-tune", bytes: 5, mime_type: "x" },
    });
    other.advance(3_600_001);
    expect((await other.send("POST", `/v1/uploads/${json.id}/parts`, { body: form })).json.error.message).toContain(
      "is expired",
    );
  } finally {
    await other.close();
  }
});

test("an upload of more than 8 GB is refused before a byte is sent", async () => {
  const { json } = await world.send("POST", "/v1/uploads", {
    body: { filename: "x", purpose: "fine-tune", bytes: 8 * 1024 ** 3 + 1, mime_type: "x" },
  });
  expect(json.error).toMatchObject({
    code: "value_out_of_range",
    param: "bytes",
    message: "`bytes` is 8589934593: expected at most 8589934592.",
  });
});

test("a part larger than 64 MB is refused while it streams", async () => {
  const id = await begin(100_000_000);
  const chunk = new Uint8Array(1024 * 1024);
  let sent = 0;
  const head = '--b\r\ncontent-disposition: form-data; name="data"; filename="p"\r\n\r\n';
  const body = new ReadableStream<Uint8Array>({
    pull(controller) {
      if (sent === 0) controller.enqueue(new TextEncoder().encode(head));
      if (sent === 80) controller.close();
      else controller.enqueue(chunk);
      sent += 1;
    },
  });
  const { status, json } = await world.send("POST", `/v1/uploads/${id}/parts`, {
    body,
    headers: { "content-type": "multipart/form-data; boundary=b" },
  });
  expect(status).toBe(413);
  expect(json.error).toMatchObject({ code: "body_too_large", param: "data" });
});
