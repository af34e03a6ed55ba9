/** The server the demo talks to: the one that runs for this home already, or one of its own for the time of the demo. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { loadConfig } from "../../packages/server/src/config.js";
import { AppError } from "../../packages/server/src/domain/error.js";
import { startServer } from "../../packages/server/src/main.js";

export interface DemoServer {
  url: string;
  apiKey: string;
  home: string;
  /** Whether the demo started it; then `close` ends it. */
  own: boolean;
  close(): Promise<void>;
}

type Env = Readonly<Record<string, string | undefined>>;
const serverFileSchema = z.object({ url: z.string() });

/** Throws AppError as `startServer` does, or an Error when a running server's key is not to be found. */
export async function openServer(env: Env, cwd: string): Promise<DemoServer> {
  const config = loadConfig({ env, cwd });
  const running = await runningServer(config.home);
  if (running !== null) {
    return {
      url: running,
      apiKey: await adminKey(config.home, config.adminKey),
      home: config.home,
      own: false,
      close: async () => undefined,
    };
  }
  const server = await startOnFreePort(env, cwd);
  return {
    url: server.url,
    apiKey: await adminKey(config.home, config.adminKey),
    home: config.home,
    own: true,
    close: () => server.close(),
  };
}

async function runningServer(home: string): Promise<string | null> {
  const text = await readFile(join(home, "server.json"), "utf8").catch(() => null);
  const parsed = text === null ? null : serverFileSchema.safeParse(JSON.parse(text));
  if (!parsed?.success) return null;
  const answer = await fetch(`${parsed.data.url}/healthz`, { signal: AbortSignal.timeout(5000) }).catch(() => null);
  return answer?.ok === true ? parsed.data.url : null;
}

/** The usual port; when another program has it and nobody asked for this very one, any free port. */
async function startOnFreePort(env: Env, cwd: string): ReturnType<typeof startServer> {
  try {
    return await startServer({ env, cwd });
  } catch (error) {
    if (!(error instanceof AppError) || error.code !== "port_in_use" || env["FETTLE_PORT"]) throw error;
    return startServer({ env: { ...env, FETTLE_PORT: "0" }, cwd });
  }
}

async function adminKey(home: string, given: string | null): Promise<string> {
  const key = given ?? (await readFile(join(home, "admin_key"), "utf8").catch(() => "")).trim();
  if (key === "")
    throw new Error(
      `No admin key in ${join(home, "admin_key")}: set FETTLE_ADMIN_KEY to the key of the running server.`,
    );
  return key;
}
