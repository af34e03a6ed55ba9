/** A whole server with the trainer that ships and one tiny random model, "tiny". */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startServer } from "../../packages/server/src/main.js";
import { createTestDatabase } from "../../packages/server/test/database.js";
import { quietLog } from "../recovery/platform.js";
import { makeTinyModel } from "../tiny-model.js";

const key = "an-admin-key-of-this-test";

export interface TinyServer {
  url: string;
  key: string;
  /** Removed when it is closed. */
  folder: string;
  /** FETTLE_HOME, in that folder. */
  home: string;
  // biome-ignore lint/suspicious/noExplicitAny: answers of a server that other tests hold to its contract
  send(method: string, path: string, body?: object | FormData): Promise<any>;
  /** The id of the file. */
  upload(rows: readonly object[]): Promise<string>;
  close(): Promise<void>;
}

/** `settings`: lines of fettle.yaml. */
export async function startTinyServer(kind: "decoder" | "encoder", settings: string): Promise<TinyServer> {
  const database = await createTestDatabase();
  const folder = mkdtempSync(join(tmpdir(), "fettle-tiny-"));
  const home = join(folder, "home");
  makeTinyModel(kind, join(home, "models", "tiny"));
  writeFileSync(join(home, "fettle.yaml"), settings);
  const server = await startServer({
    env: { ...process.env, FETTLE_HOME: home, FETTLE_PORT: "0", DATABASE_URL: database.url, FETTLE_ADMIN_KEY: key },
    cwd: folder,
    log: quietLog,
  });
  const send: TinyServer["send"] = async (method, path, body) => {
    const isForm = body instanceof FormData;
    const response = await fetch(`${server.url}${path}`, {
      method,
      headers: { authorization: `Bearer ${key}`, ...(!isForm && { "content-type": "application/json" }) },
      ...(body && { body: isForm ? body : JSON.stringify(body) }),
    });
    return response.json();
  };
  return {
    url: server.url,
    key,
    folder,
    home,
    send,
    async upload(rows) {
      const form = new FormData();
      form.set("purpose", "fine-tune");
      form.set("file", new File([rows.map((row) => `${JSON.stringify(row)}\n`).join("")], "rows.jsonl"));
      return (await send("POST", "/v1/files", form)).id;
    },
    async close() {
      await server.close();
      await database.drop();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}
