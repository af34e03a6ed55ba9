/** Exports: archives that the system's tar reads, and what is refused. */
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { AppError } from "../../src/domain/error.js";
import { tarComment, tarEnd, tarFile } from "../../src/http/tar.js";
import { FakeExporter } from "../fake-exporter.js";
import { type TunedRun, tunedRun } from "./tuned.js";
import { createWorld, type World } from "./world.js";

let world: World;
let tuned: TunedRun;
const made: string[] = [];
beforeAll(async () => {
  world = await createWorld();
  tuned = await tunedRun(world);
});
beforeEach(() => Object.assign(world.exporter, new FakeExporter()));
afterAll(async () => {
  for (const folder of made) rmSync(folder, { recursive: true });
  await world.close();
});

const request = (name: string, query = "", init: RequestInit = {}) =>
  world.router.app.request(`/api/models/${encodeURIComponent(name)}/export${query}`, {
    headers: { authorization: `Bearer ${world.key}` },
    ...init,
  });
/** As the system's own tar takes it apart. */
function unpacked(archive: Uint8Array): Record<string, string> {
  const folder = mkdtempSync(join(tmpdir(), "fettle-tar-"));
  made.push(folder);
  execFileSync("tar", ["-x", "-C", folder], { input: archive });
  return Object.fromEntries(readdirSync(folder).map((name) => [name, readFileSync(join(folder, name), "utf8")]));
}
const exported = async (response: Response) => unpacked(new Uint8Array(await response.arrayBuffer()));
const leftovers = () => world.deps.blobs.list("exports");

test("an adapter is exported as it is", async () => {
  const response = await request(tuned.model);
  expect(response.status).toBe(200);
  expect(response.headers.get("content-type")).toBe("application/x-tar");
  expect(response.headers.get("x-fettle-merged")).toBe("false");
  expect(await exported(response)).toEqual({ "adapter_model.safetensors": "weights of the end", "fettle.json": "{}" });
});

test("merged, base and adapter come as one model, and nothing of it stays here", async () => {
  const response = await request(tuned.model, "?merged=true");
  expect(response.headers.get("x-fettle-merged")).toBe("true");
  expect(Object.keys(await exported(response)).sort()).toEqual(["config.json", "fettle.json", "model.safetensors"]);
  expect(world.exporter.merges).toMatchObject([{ basePath: "/models/smollm2", adapterPath: tuned.folder("artefact") }]);
  expect(await leftovers()).toEqual([]);
});

test("a checkpoint is exported too", async () => {
  expect((await exported(await request(tuned.checkpoint)))["adapter_model.safetensors"]).toBe("weights of step 5");
});

test("a model tuned whole has nothing to merge: it comes as it is, and the header says so", async () => {
  const full = await tunedRun(world, { method: "full" });
  const response = await request(full.model, "?merged=true");
  expect(response.headers.get("x-fettle-merged")).toBe("false");
  expect(Object.keys(await exported(response))).toContain("fettle.json");
  expect(world.exporter.merges).toEqual([]);
});

test("a format is written by the exporter from the tuned model, its base and its run", async () => {
  world.exporter.weights = "GGUF";
  const response = await request(tuned.model, "?format=gguf&quantize=q8_0&prune=0.3");
  expect(response.headers.get("x-fettle-merged")).toBe("true");
  expect(await exported(response)).toMatchObject({ "model.gguf": "GGUF", "export.json": "{}" });
  expect(world.exporter.writes).toMatchObject([
    {
      sourcePath: tuned.folder("artefact"),
      basePath: "/models/smollm2",
      runFolder: tuned.folder(""),
      name: tuned.model,
      format: "gguf",
      quantize: "q8_0",
      prune: 0.3,
    },
  ]);
  expect(await leftovers()).toEqual([]);
});

test("a model tuned whole is its own base", async () => {
  const full = await tunedRun(world, { method: "full" });
  await exported(await request(full.model, "?format=merged"));
  const [asked] = world.exporter.writes;
  expect(asked).toMatchObject({ quantize: null, prune: 0, sourcePath: full.folder("artefact") });
  expect(asked?.basePath).toBe(asked?.sourcePath);
});

test("what writes text becomes a GGUF whatever it learnt from; what does not becomes ONNX", async () => {
  const preference = await tunedRun(world, { task: "preference" });
  await exported(await request(preference.model, "?format=gguf"));
  const classes = await tunedRun(world, { task: "classification" });
  await exported(await request(classes.model, "?format=onnx&quantize=int8"));
  expect(world.exporter.writes).toMatchObject([{ format: "gguf" }, { format: "onnx", quantize: "int8" }]);
  const answer = await world.send("GET", `/api/models/${encodeURIComponent(classes.model)}/export?format=gguf`);
  expect([answer.status, answer.json.error.code]).toEqual([400, "export_not_possible"]);
});

test.each([
  ["a quantisation of another format", "?format=gguf&quantize=int8", "export_not_possible", "quantize"],
  ["a quantised adapter", "?format=safetensors&quantize=q8_0", "export_not_possible", "quantize"],
  ["a pruned adapter", "?format=safetensors&prune=0.5", "export_not_possible", "prune"],
  ["an adapter that is merged", "?format=safetensors&merged=true", "export_not_possible", "format"],
  ["a quantisation of nothing", "?quantize=q8_0", "invalid_request", "format"],
  ["all weights gone", "?format=gguf&prune=1", "value_out_of_range", "prune"],
])("%s is refused before anything is begun", async (_, query, code, param) => {
  const answer = await world.send("GET", `/api/models/${encodeURIComponent(tuned.model)}/export${query}`);
  expect([answer.status, answer.json.error.code, answer.json.error.param]).toEqual([400, code, param]);
  expect(world.exporter.writes).toEqual([]);
});

test.each(["prompt", "prefix"] as const)(
  "virtual tokens (%s) leave as they are, and in no other way",
  async (method) => {
    const virtual = await tunedRun(world, { method });
    const files = { "adapter_model.safetensors": "weights of the end", "fettle.json": "{}" };
    expect(await exported(await request(virtual.model))).toEqual(files);
    for (const [query, param] of [
      ["merged=true", "merged"],
      ["format=merged", "format"],
      ["format=gguf", "format"],
    ]) {
      const answer = await world.send("GET", `/api/models/${encodeURIComponent(virtual.model)}/export?${query}`);
      expect([answer.status, answer.json.error.code, answer.json.error.param]).toEqual([
        400,
        "export_not_possible",
        param,
      ]);
    }
    expect(world.exporter.writes).toEqual([]);
  },
);

test.each([
  ["a base model", "minilm", "", 400, "invalid_request"],
  ["an unknown model", "ft:minilm:default::nope", "", 404, "model_not_found"],
  ["a path", "../../../etc", "", 404, "model_not_found"],
  ["a path behind the prefix", "ft:../../../../etc", "", 404, "model_not_found"],
  ["a blob key", "runs/x/artefact", "", 404, "model_not_found"],
  ["another word than true", "minilm", "?merged=yes", 400, "invalid_request"],
  ["an unknown option", "minilm", "?zip=1", 400, "unknown_field"],
  ["an unknown format", "minilm", "?format=zip", 400, "invalid_request"],
])("%s is refused", async (_, name, query, status, code) => {
  const answer = await world.send("GET", `/api/models/${encodeURIComponent(name)}/export${query}`);
  expect([answer.status, answer.json.error.code]).toEqual([status, code]);
});

test("another project's model does not exist, merged or not; without a key nothing does", async () => {
  const key = await world.newKey("stranger");
  for (const query of ["", "?merged=true"]) {
    const path = `/api/models/${encodeURIComponent(tuned.model)}/export${query}`;
    expect((await world.send("GET", path, { key })).json.error.code).toBe("model_not_found");
    expect((await world.send("GET", path, { key: null })).status).toBe(401);
  }
  expect(world.exporter.merges).toEqual([]);
});

test("a merge that fails at once is an HTTP status", async () => {
  world.exporter.failure = new AppError("artefact_mismatch", "Merging changes its answers.");
  const answer = await world.send("GET", `/api/models/${encodeURIComponent(tuned.model)}/export?merged=true`);
  expect([answer.status, answer.json.error.code]).toEqual([500, "artefact_mismatch"]);
  expect(await leftovers()).toEqual([]);
});

test("one that fails after the answer has begun tells its error as the archive's last file", async () => {
  const sleep = world.deps.clock.sleep;
  world.deps.clock.sleep = () => Promise.resolve();
  let fail = (_: Error): void => undefined;
  world.exporter.hold = new Promise((_, reject) => {
    fail = reject;
  });
  try {
    const response = await request(tuned.model, "?merged=true");
    expect(response.status).toBe(200);
    fail(new AppError("out_of_memory", "The model does not fit."));
    const files = await exported(response);
    expect(JSON.parse(files["fettle-error.json"] ?? "").error).toMatchObject({
      code: "out_of_memory",
      message: "The model does not fit.",
    });
  } finally {
    world.deps.clock.sleep = sleep;
  }
  expect(await leftovers()).toEqual([]);
});

test("a client that goes away ends the merge, and nothing of it stays", async () => {
  const leaving = new AbortController();
  world.exporter.hold = new Promise(() => undefined);
  const answer = Promise.resolve(request(tuned.model, "?merged=true", { signal: leaving.signal }));
  await expect.poll(() => world.exporter.merges.length).toBe(1);
  leaving.abort();
  await expect(answer.then((response) => response.status)).resolves.toBe(500);
  expect(existsSync(world.exporter.merges[0]?.out ?? "")).toBe(false);
});

test("an archive says sizes over 8 GiB as tar reads them, and refuses content of another length", async () => {
  async function* content(text: string) {
    yield Buffer.from(text);
  }
  const bytes = 9 * 1024 ** 3;
  const huge = tarFile({ name: "model.safetensors", bytes, content: content("x") });
  const header = (await huge.next()).value as Uint8Array;
  // The content is missing, so tar ends with a complaint; the list comes before it.
  const listed = spawnSync("tar", ["-tv"], { input: Buffer.concat([tarComment("working"), header]) });
  expect(listed.stdout.toString()).toContain(String(bytes));
  await expect(async () => {
    for await (const _ of tarFile({ name: "a", bytes: 2, content: content("x") }));
  }).rejects.toThrow("a has 1 bytes where 2 were announced");
  expect(unpacked(tarEnd())).toEqual({});
});
