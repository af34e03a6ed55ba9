/**
 * The whole HTTP surface. Each request passes: request id and security headers, Host and Origin, key, then its route.
 * Only the status page and /healthz answer without a key; an unknown path is told to those with a key alone.
 */
import { healthSchema } from "@fettle/contract";
import { createRoute, OpenAPIHono } from "@hono/zod-openapi";
import type { MiddlewareHandler } from "hono";
import { authenticate } from "../app/keys.js";
import { AppError } from "../domain/error.js";
import { dataRoutes } from "./api/data.js";
import { keyRoutes } from "./api/keys.js";
import { ownModelRoutes } from "./api/models.js";
import { predictionRoutes } from "./api/predictions.js";
import { runRoutes } from "./api/runs.js";
import { statusRoutes } from "./api/status.js";
import { crossValidationRoutes } from "./api/cross-validations.js";
import { sweepRoutes } from "./api/sweeps.js";
import { presentedKey } from "./auth.js";
import type { HttpDeps, HttpEnv } from "./deps.js";
import { endpoint, type Router } from "./endpoint.js";
import { errorResponse } from "./errors.js";
import { chatRoutes } from "./openai/chat.js";
import { completionRoutes } from "./openai/completions.js";
import { embeddingRoutes } from "./openai/embeddings.js";
import { fileRoutes } from "./openai/files.js";
import { jobRoutes } from "./openai/jobs.js";
import { modelRoutes } from "./openai/models.js";
import { uploadRoutes } from "./openai/uploads.js";
import { checkOrigin } from "./origin.js";
import { pagePolicy, statusPage } from "./page.js";
import { z } from "zod";

/** The paths that answer without a key. Nothing else does. */
export const openPaths: readonly string[] = ["/", "/healthz"];

export function createApp(deps: HttpDeps): Router {
  const app = new OpenAPIHono<HttpEnv>();
  const router: Router = { app, deps, declared: [] };
  app.use(mark(deps), guard(deps));
  app.onError((error, context) => {
    const response = errorResponse(error, context.var.requestId);
    if (response.status >= 500)
      deps.log.error({ err: error, requestId: context.var.requestId, path: context.req.routePath }, "request failed");
    return response;
  });
  openRoutes(router);
  for (const routes of [
    fileRoutes,
    uploadRoutes,
    jobRoutes,
    modelRoutes,
    chatRoutes,
    completionRoutes,
    embeddingRoutes,
  ])
    routes(router);
  for (const routes of [
    runRoutes,
    sweepRoutes,
    crossValidationRoutes,
    dataRoutes,
    ownModelRoutes,
    predictionRoutes,
    keyRoutes,
    statusRoutes,
  ])
    routes(router);
  documentRoute(router);
  app.notFound((context) => {
    throw unknownRoute(router, { method: context.req.method, path: context.req.path });
  });
  return router;
}

const securityHeaders: readonly (readonly [string, string])[] = [
  ["x-content-type-options", "nosniff"],
  ["x-frame-options", "DENY"],
  ["referrer-policy", "no-referrer"],
  ["cross-origin-opener-policy", "same-origin"],
  ["cross-origin-resource-policy", "same-origin"],
];

/** Outermost, so that refusals of the guard carry the headers too. */
function mark(deps: HttpDeps): MiddlewareHandler<HttpEnv> {
  return async (context, next) => {
    const requestId = deps.ids.make("req_");
    context.set("requestId", requestId);
    await next();
    const { headers } = context.res;
    for (const [name, value] of securityHeaders) headers.set(name, value);
    if (!headers.has("content-security-policy"))
      headers.set("content-security-policy", "default-src 'none'; frame-ancestors 'none'");
    if (!headers.has("cache-control")) headers.set("cache-control", "no-store");
    headers.set("x-request-id", requestId);
  };
}

function guard(deps: HttpDeps): MiddlewareHandler<HttpEnv> {
  return async (context, next) => {
    const { headers } = context.req.raw;
    const open = openPaths.includes(context.req.path) && context.req.method === "GET";
    checkOrigin(
      {
        host: headers.get("host") ?? new URL(context.req.url).host,
        origin: headers.get("origin"),
        secFetchSite: open ? null : headers.get("sec-fetch-site"),
      },
      deps.settings.allowedHosts,
    );
    if (!open) context.set("caller", await authenticate(deps, presentedKey(headers)));
    await next();
  };
}

function openRoutes({ app }: Router): void {
  app.openapi(
    createRoute({
      method: "get",
      path: "/",
      summary: "The status page; it holds no data",
      tags: ["Status"],
      security: [],
      responses: { 200: { description: "A page.", content: { "text/html": { schema: z.string() } } } },
    }),
    (context) =>
      context.body(statusPage, 200, {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": pagePolicy,
      }),
  );
  app.openapi(
    createRoute({
      method: "get",
      path: "/healthz",
      summary: "Whether the server answers",
      tags: ["Status"],
      security: [],
      responses: { 200: { description: "Up.", content: { "application/json": { schema: healthSchema } } } },
    }),
    (context) => context.json({ status: "ok" as const }, 200),
  );
}

function documentRoute(router: Router): void {
  let text: string | null = null;
  endpoint(
    router,
    {
      method: "get",
      path: "/openapi.json",
      summary: "This document",
      tag: "Status",
      role: "member",
      response: z.looseObject({}),
    },
    async () => {
      text ??= JSON.stringify(openapiDocument(router));
      return new Response(text, { headers: { "content-type": "application/json" } });
    },
  );
}

export function openapiDocument({ app, deps }: Router): object {
  app.openAPIRegistry.registerComponent("securitySchemes", "bearer", { type: "http", scheme: "bearer" });
  return app.getOpenAPI31Document({
    openapi: "3.1.0",
    info: {
      title: "Fettle",
      version: deps.settings.version,
      description: "Fine-tune and serve models on your own machine: OpenAI's surface under /v1, ours under /api.",
    },
  });
}

/** 405 with `allow` when the path exists, else 404. */
function unknownRoute(router: Router, { method, path }: { method: string; path: string }): AppError {
  const allow = [
    ...new Set([
      ...router.declared.filter((route) => route.pattern.test(path)).map((route) => route.method.toUpperCase()),
      ...(openPaths.includes(path) ? ["GET"] : []),
    ]),
  ];
  const shown = path.slice(0, 200);
  if (allow.length > 0) {
    return new AppError(
      "method_not_allowed",
      `${method} is not possible on ${shown}: expected ${allow.join(" or ")}.`,
      { details: { allow } },
    );
  }
  return new AppError(
    "not_found",
    `No route ${method} ${shown}. /openapi.json lists the routes; OpenAI clients need a base URL that ends in /v1.`,
  );
}
