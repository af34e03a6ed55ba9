/** The official Python client, both majors, each in a folder of its own, installed once and kept. */
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, rename, rm } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type ClientServer, startClientServer } from "./server.js";

const run = promisify(execFile);
const root = join(import.meta.dirname, "..", "..");
const python = process.env.FETTLE_PYTHON ?? join(root, ".venv", "bin", "python");
const cache = join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "fettle", "clients");

/** The folder of `openai==version`; installed beside and moved in whole, so that a broken install is never kept. */
async function installed(version: string): Promise<string> {
  const folder = join(cache, `openai-${version}`);
  if (existsSync(join(folder, "openai"))) return folder;
  const making = `${folder}.${process.pid}`;
  await mkdir(making, { recursive: true });
  await run(
    python,
    [
      "-m",
      "pip",
      "install",
      "--quiet",
      "--disable-pip-version-check",
      "--no-input",
      "--only-binary",
      ":all:",
      "--target",
      making,
      `openai==${version}`,
    ],
    { timeout: 120_000 },
  );
  await rm(folder, { recursive: true, force: true });
  await rename(making, folder);
  return folder;
}

let server: ClientServer;
beforeAll(async () => {
  server = await startClientServer();
});
afterAll(() => server.close());

test.each(["2.54.0", "3.22.1"])(
  "openai %s from PyPI: files, uploads, jobs, inference, refusals",
  { timeout: 180_000 },
  async (version) => {
    const folder = await installed(version);
    const { stdout } = await run(
      python,
      [join(import.meta.dirname, "python", "conformance.py"), server.baseURL, server.apiKey],
      {
        env: { PATH: process.env.PATH, PYTHONPATH: folder, NO_PROXY: "127.0.0.1" },
        timeout: 60_000,
      },
    );
    const seen = JSON.parse(stdout);
    expect(seen.version).toBe(version);
    expect(seen.files).toMatchObject({
      status: "processed",
      same_bytes: true,
      upload: ["completed", 2500],
      listed: true,
      deleted: true,
      gone: ["NotFoundError", 404, "not_found", "file_id"],
    });
    expect(seen.jobs).toMatchObject({
      status: "queued",
      epochs: 2,
      cancelled: "cancelled",
      again: ["ConflictError", 409, "conflict", "fine_tuning_job_id"],
      checkpoints: [],
      listed: true,
      unknown_model: ["NotFoundError", 404, "model_not_found", "model"],
    });
    expect(seen.jobs.events).toEqual([
      'The field "trainingType" is not known here and was ignored.',
      expect.stringContaining("Created fine-tuning job: ftjob-"),
    ]);
    expect(seen.inference).toMatchObject({
      chat: "Hello there friend",
      logprob: -0.5,
      request_id: "req_",
      stream: ["Hello there friend", 10],
      completion: "Hello there friend",
      embedding: [1.5, -1, 0.25],
      slash: "org/tiny-t5",
      wrong_key: ["AuthenticationError", 401, "invalid_api_key", null],
    });
    expect(seen.inference.models).toContain("minilm");
    expect(seen.parallel).toBe(true);
  },
);
