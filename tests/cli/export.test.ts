/** `fettle models export`, against the real routes and against a server that means no good. */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { AppError } from "../../packages/server/src/domain/error.js";
import { tarComment, tarEnd, tarFile } from "../../packages/server/src/http/tar.js";
import { FakeExporter } from "../../packages/server/test/fake-exporter.js";
import { type TunedRun, tunedRun } from "../../packages/server/test/http/tuned.js";
import { type ClientServer, startClientServer } from "../clients/server.js";
import { type Captured, captured } from "./captured.js";

let server: ClientServer;
let cli: Captured;
let tuned: TunedRun;
let out: string;
let count = 0;
beforeAll(async () => {
  server = await startClientServer();
  cli = captured({ FETTLE_URL: server.baseURL.replace(/\/v1$/, ""), FETTLE_API_KEY: server.apiKey });
  tuned = await tunedRun(server.world);
});
beforeEach(() => {
  Object.assign(server.world.exporter, new FakeExporter());
  count += 1;
  out = join(cli.home, `case-${count}`, "model");
  mkdirSync(join(out, ".."));
});
afterAll(async () => {
  cli.close();
  await server.close();
});

const report = {
  format: "gguf",
  quantize: "q4_0",
  prune: 0.25,
  sample: "held_out",
  rows: 12,
  positions: 80,
  before: { loss: 1.2, accuracy: 0.8, metrics: { f1_macro: 0.75 } },
  after: {
    loss: 1.25,
    accuracy: 0.79,
    metrics: { f1_macro: 0.7321 },
    max_abs_diff: 0.0001,
    max_abs_change: 0.125,
    agreement: 0.975,
  },
  speed: { before_ms: 10, after_ms: 8, gain: 1.25, runs: 7 },
  vllm: null,
  notes: ["2 tensors stay f16."],
};

/** Beside the folder too: nothing half-written may stay. */
const left = (): string[] => readdirSync(join(out, ".."));

describe("export", () => {
  it("writes the adapter as it is, and says what it wrote", async () => {
    const said = await cli.run(["models", "export", tuned.model, "--out", out, "--json"]);
    expect(said.code).toBe(0);
    expect(cli.document(said)).toEqual({
      model: tuned.model,
      folder: out,
      merged: false,
      files: [
        { name: "adapter_model.safetensors", bytes: 18 },
        { name: "fettle.json", bytes: 2 },
      ],
    });
    expect(readFileSync(join(out, "adapter_model.safetensors"), "utf8")).toBe("weights of the end");
    expect(left()).toEqual(["model"]);
  });

  it("writes a merged model, into an empty folder too", async () => {
    mkdirSync(out);
    const said = await cli.run(["models", "export", tuned.model, "--merged", "-o", out]);
    expect(said).toMatchObject({ code: 0, stdout: `${out}\n` });
    expect(readdirSync(out).sort()).toEqual(["config.json", "fettle.json", "model.safetensors"]);
  });

  it("writes a format, shows what the server is at, and tells how it was compared", async () => {
    server.world.exporter.report = report;
    const asked = ["export", tuned.model, "--format", "gguf", "--quantize", "q4_0", "--prune", "0.25", "--out", out];
    const said = await cli.run(asked);
    expect(said).toMatchObject({ code: 0, stdout: `${out}\n` });
    expect(said.stderr).toContain("compared on 12 rows the run held out: same answer at 97.5 % of 80 positions");
    expect(said.stderr).toContain("loss 1.2000 before, 1.2500 after; accuracy 80.0 % before, 79.0 % after");
    expect(said.stderr).toContain("f1_macro 0.7500 before, 0.7321 after");
    expect(said.stderr).toContain("largest difference of a logit to the tuned model: 0.13");
    expect(said.stderr).toContain("10.0 ms before, 8.0 ms after: 1.25 times as fast (median of 7)");
    expect(said.stderr).toContain("2 tensors stay f16.");
    expect(server.world.exporter.writes).toMatchObject([{ format: "gguf", quantize: "q4_0", prune: 0.25 }]);
    expect(left()).toEqual(["model"]);
  });

  it("has the comparison in its document; a report it does not know is left in the folder", async () => {
    server.world.exporter.report = report;
    const asked = ["models", "export", tuned.model, "--format", "gguf", "--json", "--out"];
    expect(cli.document(await cli.run([...asked, out]))).toMatchObject({ merged: true, report });
    server.world.exporter.report = { version: 99 };
    const other = cli.document(await cli.run([...asked, `${out}-2`]));
    expect(other).not.toHaveProperty("report");
    expect(other).toMatchObject({ files: [{ name: "export.json" }, {}, {}] });
  });

  it("refuses a format that does not exist here, one that is not possible at the server", async () => {
    expect((await cli.run(["export", tuned.model, "--format", "zip", "--out", out])).code).toBe(2);
    const said = await cli.run([
      "export",
      tuned.model,
      "--format",
      "gguf",
      "--quantize",
      "int8",
      "--out",
      out,
      "--json",
    ]);
    expect(cli.document(said)).toMatchObject({ error: { code: "export_not_possible", param: "quantize" } });
    expect(left()).toEqual([]);
  });

  it("says that a model tuned whole has nothing to merge, and exports it all the same", async () => {
    const full = await tunedRun(server.world, { method: "full" });
    const said = await cli.run(["models", "export", full.model, "--merged", "--out", out]);
    expect(said.code).toBe(0);
    expect(said.stderr).toContain(`${full.model} was tuned whole: there is nothing to merge.`);
    expect(existsSync(join(out, "fettle.json"))).toBe(true);
  });

  it("does not touch a folder that holds something, nor asks for anything", async () => {
    mkdirSync(out);
    writeFileSync(join(out, "mine"), "x");
    const before = server.seen.length;
    const said = await cli.run(["models", "export", tuned.model, "--out", out, "--json"]);
    expect(said.code).toBe(6);
    expect(cli.document(said)).toMatchObject({ error: { code: "conflict" } });
    expect(server.seen).toHaveLength(before);
    expect(readdirSync(out)).toEqual(["mine"]);
  });

  it("needs --out, knows no base model and no other model, and names a folder it cannot write", async () => {
    expect((await cli.run(["models", "export", tuned.model])).code).toBe(2);
    expect((await cli.run(["models", "export", "ft:nope", "--out", out])).code).toBe(3);
    const base = await cli.run(["models", "export", "minilm", "--out", out, "--json"]);
    expect(base.code).toBe(1);
    expect(cli.document(base)).toMatchObject({ error: { code: "invalid_request", param: "model" } });
    writeFileSync(join(out, "..", "file"), "x");
    const said = await cli.run(["models", "export", tuned.model, "--out", join(out, "..", "file", "model"), "--json"]);
    expect(said.code).toBe(1);
    expect(cli.document(said)).toMatchObject({ error: { code: "folder_not_writable" } });
    expect(left()).toEqual(["file"]);
  });

  it("a merge that fails ends with the server's error and leaves nothing", async () => {
    server.world.exporter.failure = new AppError("artefact_mismatch", "Merging changes its answers.");
    const said = await cli.run(["models", "export", tuned.model, "--merged", "--out", out, "--json"]);
    expect(said.code).toBe(1);
    expect(cli.document(said)).toMatchObject({ error: { code: "artefact_mismatch" } });
    expect(left()).toEqual([]);
  });

  it("Ctrl-C during a merge is 130: the merge ends on the server, and nothing stays on either side", async () => {
    const interrupt = new AbortController();
    const { exporter, deps } = server.world;
    exporter.hold = new Promise(() => undefined);
    const running = cli.run(["models", "export", tuned.model, "--merged", "--out", out], { interrupt });
    await expect.poll(() => exporter.merges.length).toBe(1);
    interrupt.abort();
    expect((await running).code).toBe(130);
    expect(left()).toEqual([]);
    await expect.poll(() => deps.blobs.list("exports")).toEqual([]);
    await expect.poll(() => existsSync(join(exporter.merges[0]?.out ?? "", ".."))).toBe(false);
  });
});

it("a client that leaves in the middle of a large file leaves nothing on the server", async () => {
  const { exporter, deps } = server.world;
  exporter.weights = "x".repeat(32 * 1024 * 1024);
  const leaving = new AbortController();
  const response = await fetch(
    `${server.baseURL.replace(/\/v1$/, "")}/api/models/${encodeURIComponent(tuned.model)}/export?merged=true`,
    { headers: { authorization: `Bearer ${server.apiKey}` }, signal: leaving.signal },
  );
  await response.body?.getReader().read();
  expect(await deps.blobs.list("exports")).not.toEqual([]);
  leaving.abort();
  await expect.poll(() => deps.blobs.list("exports")).toEqual([]);
});

describe("a server that means no good", () => {
  let hostile: Server;
  let body: Uint8Array;
  let cut = false;
  let other: Captured;
  beforeAll(async () => {
    hostile = createServer((_, response) => {
      response.writeHead(200, { "content-type": "application/x-tar" });
      response.write(body, () => {
        if (cut) response.socket?.end();
        else response.end();
      });
    });
    await new Promise<void>((resolve) => hostile.listen(0, "127.0.0.1", resolve));
    const { port } = hostile.address() as AddressInfo;
    other = captured({ FETTLE_URL: `http://127.0.0.1:${port}`, FETTLE_API_KEY: "x" });
  });
  afterAll(async () => {
    other.close();
    await new Promise((resolve) => hostile.close(resolve));
  });
  afterEach(() => {
    cut = false;
  });

  async function archive(name: string, text = "x", change: (bytes: Buffer) => void = () => undefined): Promise<Buffer> {
    const parts: Uint8Array[] = [tarComment("working")];
    async function* content() {
      yield Buffer.from(text);
    }
    for await (const part of tarFile({ name, bytes: text.length, content: content() })) parts.push(part);
    const bytes = Buffer.concat([...parts, tarEnd()]);
    change(bytes);
    return bytes;
  }
  const sumAnew = (bytes: Buffer): void => {
    bytes.write(" ".repeat(8), 1024 + 148);
    const sum = bytes.subarray(1024, 1536).reduce((total, byte) => total + byte, 0);
    bytes.write(`${sum.toString(8).padStart(6, "0")}\0 `, 1024 + 148);
  };
  const run = () => other.run(["models", "export", "ft:x", "--out", out, "--json"]);

  it.each<[string, () => Promise<Uint8Array>, string]>([
    ["a name that climbs out", () => archive("../evil"), '"../evil" is no name of a file in the folder'],
    ["an absolute name", () => archive("/tmp/evil"), "is no name of a file in the folder"],
    ["a name that climbs in the middle", () => archive("a/../../evil"), "is no name of a file in the folder"],
    [
      "a link",
      () =>
        archive("evil", "", (bytes) => {
          bytes.write("2", 1024 + 156);
          bytes.write("/etc/passwd", 1024 + 157);
          sumAnew(bytes);
        }),
      '"evil" is no plain file',
    ],
    ["a wrong checksum", () => archive("a", "x", (bytes) => bytes.write("b", 1024)), "a header's checksum is wrong"],
    [
      "a size beyond numbers",
      () =>
        archive("a", "x", (bytes) => {
          bytes.fill(0xff, 1024 + 125, 1024 + 136);
          bytes[1024 + 124] = 0x80;
          sumAnew(bytes);
        }),
      "a file's size is unreadable",
    ],
    ["an end in the middle", async () => (await archive("a", "x".repeat(2000))).subarray(0, 2048), "it ends too early"],
    ["no archive at all", async () => Buffer.from("<html>".repeat(200)), "a header's checksum is wrong"],
  ])("%s is refused, and nothing stays", async (_, make, why) => {
    body = await make();
    const said = await run();
    expect(said.code).toBe(1);
    expect(other.document(said)).toMatchObject({
      error: { code: "invalid_response", message: expect.stringContaining(why) },
    });
    expect(left()).toEqual([]);
  });

  it("a connection that is cut leaves nothing", async () => {
    cut = true;
    body = (await archive("a", "x".repeat(2000))).subarray(0, 2048);
    const said = await run();
    expect(other.document(said)).toMatchObject({
      error: { code: "invalid_response", message: expect.stringContaining("the connection was cut") },
    });
    expect(left()).toEqual([]);
  });

  it("an error told in the archive is the command's error, and no file", async () => {
    const error = { message: "Killed.", type: "server_error", param: null, code: "out_of_memory" };
    body = await archive("fettle-error.json", JSON.stringify({ error }));
    const said = await run();
    expect(other.document(said)).toMatchObject({ error: { code: "out_of_memory", message: "Killed." } });
    expect(left()).toEqual([]);
  });
});
