/** The app on a socket. */
import type { Server } from "node:http";
import { type Http2Bindings, type HttpBindings, serve } from "@hono/node-server";
import { AppError } from "../domain/error.js";
import type { HttpEnv } from "./deps.js";
import type { Router } from "./endpoint.js";
import { errorResponse } from "./errors.js";

export interface Listening {
  /** `http://127.0.0.1:4141`, with the port really taken. */
  url: string;
  /** From here on the app answers; before, /healthz says "starting" and all else is told to come again. */
  open(router: Router): void;
  /** Refuses new connections, lets answers finish for `graceMs`, then cuts what is left (live streams). */
  close(graceMs: number): Promise<void>;
}

/** An upload of 512 MB over a slow line takes its time; headers do not. */
const requestTimeoutMs = 60 * 60_000;
const headersTimeoutMs = 30_000;

/** Takes the port before anything else is started, so that a port in use costs nothing. Throws `port_in_use`. */
export async function listen(address: { host: string; port: number }): Promise<Listening> {
  let answer: Router["app"]["fetch"] = starting;
  const fetch = (request: Request, bindings: HttpBindings | Http2Bindings) =>
    answer(request, bindings as HttpEnv["Bindings"]);
  const server = await new Promise<Server>((resolve, reject) => {
    const created = serve({ fetch, hostname: address.host, port: address.port, overrideGlobalObjects: false }, () =>
      resolve(created as Server),
    );
    created.on("error", (cause: NodeJS.ErrnoException) => reject(refusal(cause, address)));
  });
  server.requestTimeout = requestTimeoutMs;
  server.headersTimeout = headersTimeoutMs;
  const bound = server.address();
  const port = typeof bound === "object" && bound !== null ? bound.port : address.port;
  const shown = address.host.includes(":") ? `[${address.host}]` : address.host;
  return {
    url: `http://${shown}:${port}`,
    open: (router) => {
      answer = router.app.fetch;
    },
    close: (graceMs) => close(server, graceMs),
  };
}

function starting(request: Request): Response {
  if (new URL(request.url).pathname === "/healthz") return Response.json({ status: "starting" });
  return errorResponse(
    new AppError("database_unavailable", "The server is starting. Try again in a second."),
    "req_starting",
  );
}

function refusal(cause: NodeJS.ErrnoException, { host, port }: { host: string; port: number }): AppError {
  if (cause.code === "EADDRINUSE") {
    return new AppError(
      "port_in_use",
      `Port ${port} on ${host} is taken by another program. Stop it, or choose a free port: FETTLE_PORT=${port + 1}.`,
      { cause },
    );
  }
  return new AppError(
    "config_invalid",
    `Cannot listen on ${host}:${port} (${cause.code ?? cause.message}). Set server.host in fettle.yaml to an address of this machine, or FETTLE_PORT to a port above 1023.`,
    { cause },
  );
}

async function close(server: Server, graceMs: number): Promise<void> {
  const cut = setTimeout(() => server.closeAllConnections(), graceMs);
  await new Promise<void>((resolve) => {
    server.close(() => resolve());
    server.closeIdleConnections();
  });
  clearTimeout(cut);
}
