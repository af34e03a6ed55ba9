/**
 * A route, declared once: its schemas are the OpenAPI document, the parser and the permission at the same time.
 * The handler gets parsed values, calls one use case, and gives a value of the response schema.
 */
import { errorBodySchema } from "@fettle/contract";
import { createRoute, type OpenAPIHono } from "@hono/zod-openapi";
import type { Context } from "hono";
import type { z } from "zod";
import type { Caller } from "../app/deps.js";
import { AppError } from "../domain/error.js";
import type { HttpDeps, HttpEnv } from "./deps.js";
import { once } from "./idempotency.js";
import { parseJson, parseWith } from "./parse.js";

/** JSON bodies: a long chat fits, a data file does not. */
const maxJsonBytes = 20 * 1024 * 1024;

export interface Endpoint<
  P extends z.ZodObject = z.ZodObject,
  Q extends z.ZodType = z.ZodType,
  B extends z.ZodType = z.ZodType,
> {
  method: "get" | "post" | "delete";
  /** `{name}` is one segment; `{name+}` also takes slashes (model names such as `org/model`). */
  path: string;
  summary: string;
  tag: string;
  role: "member" | "admin";
  params?: P;
  query?: Q;
  body?: B;
  /** Documented only: the handler streams the form itself. */
  form?: z.ZodType;
  response: z.ZodType | { contentType: string; schema?: z.ZodType };
  /** Retries of this request are recognised and answered as the first was. */
  once?: true;
}

export interface Input<P, Q, B> {
  params: P;
  query: Q;
  body: B;
  caller: Caller;
  context: Context<HttpEnv>;
  /** Aborted when the client goes away. */
  signal: AbortSignal;
}

export interface Declared extends Pick<Endpoint, "method" | "path" | "role"> {
  /** Matches the path of a request. */
  pattern: RegExp;
  /** Of a JSON answer with status 200; null for downloads. */
  response: z.ZodType | null;
  query: z.ZodType | null;
  body: z.ZodType | null;
}

export interface Router {
  app: OpenAPIHono<HttpEnv>;
  deps: HttpDeps;
  /** Every route, for 405 answers and the tests of permissions and documents. */
  declared: Declared[];
}

export function endpoint<
  P extends z.ZodObject = z.ZodObject,
  Q extends z.ZodType = z.ZodType,
  B extends z.ZodType = z.ZodType,
>(
  router: Router,
  spec: Endpoint<P, Q, B>,
  handle: (input: Input<z.output<P>, z.output<Q>, z.output<B>>) => Promise<object | Response>,
): void {
  router.app.openAPIRegistry.registerPath(document(spec));
  router.declared.push({
    method: spec.method,
    path: spec.path,
    role: spec.role,
    pattern: patternOf(spec.path),
    response: "contentType" in spec.response ? null : spec.response,
    query: spec.query ?? null,
    body: spec.body ?? null,
  });
  const path = spec.path.replaceAll(/\{(\w+)\+\}/g, ":$1{.+}").replaceAll(/\{(\w+)\}/g, ":$1");
  router.app.on(spec.method.toUpperCase(), path, async (context) => {
    const caller = context.var.caller;
    if (spec.role === "admin" && caller.role !== "admin") {
      throw new AppError(
        "permission_denied",
        `Your key has the role "${caller.role}": expected "admin" for this. Use an admin key.`,
      );
    }
    const params = spec.params ? parseWith(spec.params, context.req.param(), "path") : {};
    const query = spec.query ? parseWith(spec.query, queryOf(context), "query") : {};
    const text = spec.body ? await readJsonText(context) : "";
    const body = spec.body ? parseWith(spec.body, parseJson(text)) : undefined;
    const input = { params, query, body, caller, context, signal: context.req.raw.signal } as Input<
      z.output<P>,
      z.output<Q>,
      z.output<B>
    >;
    const run = async (): Promise<Response> => {
      const answer = await handle(input);
      return answer instanceof Response ? answer : Response.json(answer);
    };
    return spec.once
      ? once(router.deps, { context, route: `${spec.method} ${context.req.path}`, content: text }, run)
      : run();
  });
}

function document(spec: Endpoint) {
  const content = spec.body
    ? { "application/json": { schema: spec.body } }
    : spec.form
      ? { "multipart/form-data": { schema: spec.form } }
      : null;
  const answer =
    "contentType" in spec.response
      ? { [spec.response.contentType]: spec.response.schema ? { schema: spec.response.schema } : {} }
      : { "application/json": { schema: spec.response } };
  return createRoute({
    method: spec.method,
    path: spec.path.replaceAll("+}", "}"),
    summary: spec.summary,
    tags: [spec.tag],
    security: [{ bearer: [] }],
    request: {
      ...(spec.params && { params: spec.params }),
      ...(spec.query && { query: spec.query as z.ZodObject }),
      ...(content && { body: { content, required: true } }),
    },
    responses: {
      200: { description: "Done.", content: answer },
      default: {
        description: "Refused or failed: see docs/errors.md for each code.",
        content: { "application/json": { schema: errorBodySchema } },
      },
    },
  });
}

/** Repeated keys are refused by taking the last: a list never stands in a query here. `metadata[k]` is left to its route. */
function queryOf(context: Context<HttpEnv>): Record<string, string> {
  return Object.fromEntries(Object.entries(context.req.query()).filter(([name]) => !name.startsWith("metadata")));
}

/** An absent content-type is taken as JSON; what a foreign web page's form could send is not. */
async function readJsonText(context: Context<HttpEnv>): Promise<string> {
  const type = context.req.header("content-type")?.toLowerCase() ?? "application/json";
  if (!/^application\/(json|[\w.-]+\+json)\b/.test(type)) {
    throw new AppError("invalid_request", `The content-type is "${type.slice(0, 100)}": expected application/json.`, {
      param: "content-type",
    });
  }
  const promised = Number(context.req.header("content-length") ?? Number.NaN);
  if (promised > maxJsonBytes) throw tooLarge();
  if (Number.isFinite(promised)) return withoutBom(await context.req.text());
  return withoutBom(await readChunked(context.req.raw.body));
}

async function readChunked(body: ReadableStream<Uint8Array> | null): Promise<string> {
  const chunks: Uint8Array[] = [];
  let total = 0;
  for await (const chunk of body ?? []) {
    total += chunk.byteLength;
    if (total > maxJsonBytes) throw tooLarge();
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

const withoutBom = (text: string): string => (text.charCodeAt(0) === 0xfeff ? text.slice(1) : text);
const tooLarge = (): AppError =>
  new AppError(
    "body_too_large",
    `The request body is larger than ${maxJsonBytes} bytes. Send data as a file: POST /v1/files.`,
  );

function patternOf(path: string): RegExp {
  const escaped = path.replaceAll(/[.*?^$()|[\]\\]/g, "\\$&");
  return new RegExp(`^${escaped.replaceAll(/\{\w+\+\}/g, ".+").replaceAll(/\{\w+\}/g, "[^/]+")}$`);
}
