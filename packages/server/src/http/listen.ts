/** The app on a socket. */
import type { Server } from "node:http";
import { serve } from "@hono/node-server";
import { AppError } from "../domain/error.js";
import type { Router } from "./endpoint.js";

export interface Listening {
  /** `http://127.0.0.1:4141`, with the port really taken. */
  url: string;
  /** Refuses new connections, lets answers finish for `graceMs`, then cuts what is left (live streams). */
  close(graceMs: number): Promise<void>;
}

/** An upload of 512 MB over a slow line takes its time; headers do not. */
const requestTimeoutMs = 60 * 60_000;
const headersTimeoutMs = 30_000;

/** Throws `port_in_use`. */
export async function listen(router: Router, address: { host: string; port: number }): Promise<Listening> {
  const server = await new Promise<Server>((resolve, reject) => {
    const created = serve({ fetch: router.app.fetch, hostname: address.host, port: address.port, overrideGlobalObjects: false }, () => resolve(created as Server));
    created.on("error", (cause: NodeJS.ErrnoException) => reject(refusal(cause, address)));
  });
  server.requestTimeout = requestTimeoutMs;
  server.headersTimeout = headersTimeoutMs;
  const bound = server.address();
  const port = typeof bound === "object" && bound !== null ? bound.port : address.port;
  const shown = address.host.includes(":") ? `[${address.host}]` : address.host;
  return { url: `http://${shown}:${port}`, close: (graceMs) => close(server, graceMs) };
}

function refusal(cause: NodeJS.ErrnoException, { host, port }: { host: string; port: number }): AppError {
  if (cause.code === "EADDRINUSE") {
    return new AppError("port_in_use", `Port ${port} on ${host} is taken by another program. Stop it, or choose a free port: FETTLE_PORT=${port + 1}.`, { cause });
  }
  return new AppError("config_invalid", `Cannot listen on ${host}:${port} (${cause.code ?? cause.message}). Set server.host in fettle.yaml to an address of this machine, or FETTLE_PORT to a port above 1023.`, { cause });
}

async function close(server: Server, graceMs: number): Promise<void> {
  const cut = setTimeout(() => server.closeAllConnections(), graceMs);
  await new Promise<void>((resolve) => {
    server.close(() => resolve());
    server.closeIdleConnections();
  });
  clearTimeout(cut);
}
