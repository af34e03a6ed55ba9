import { afterAll, beforeAll, expect, test } from "vitest";
import { openapiDocument } from "../../src/http/app.js";
import { createWorld, type Json, type World } from "./world.js";

let world: World;
let document: Json;
beforeAll(async () => {
  world = await createWorld();
  document = (await world.send("GET", "/openapi.json")).json;
});
afterAll(() => world.close());

/** As OpenAPI writes paths: `/v1/models/:model{.+}` is `/v1/models/{model}`. */
const documentedPath = (path: string): string => path.replaceAll(/:(\w+)(\{\.\+\})?/g, "{$1}");

test("API-22: every served route is documented, and every documented route is served", () => {
  const served = new Set(
    world.router.app.routes
      .filter(({ method }) => method !== "ALL")
      .map(({ method, path }) => `${method} ${documentedPath(path)}`),
  );
  const documented = new Set(
    Object.entries(document.paths).flatMap(([path, methods]) =>
      Object.keys(methods as object).map((method) => `${method.toUpperCase()} ${path}`),
    ),
  );
  expect([...served].sort()).toEqual([...documented].sort());
  expect(documented.size).toBeGreaterThan(35);
});

test("the document is OpenAPI 3.1 with named schemas, and every reference in it leads somewhere", () => {
  expect(document.openapi).toBe("3.1.0");
  const references = [...JSON.stringify(document).matchAll(/"\$ref":"#\/components\/schemas\/([^"]+)"/g)].map(
    (match) => match[1] ?? "",
  );
  expect(references.length).toBeGreaterThan(50);
  for (const name of references) expect(Object.keys(document.components.schemas)).toContain(name);
  expect(Object.keys(document.components.schemas)).toEqual(
    expect.arrayContaining(["FineTuningJob", "File", "Upload", "ChatCompletion", "ErrorBody", "Run"]),
  );
});

test("every route but the open two names the key it needs", () => {
  for (const [path, methods] of Object.entries(document.paths)) {
    for (const operation of Object.values(methods as Record<string, Json>)) {
      expect([path, operation.security.length]).toEqual([path, path === "/" || path === "/healthz" ? 0 : 1]);
    }
  }
});

/** Fields of request schemas whose size is not bounded, by their path in the document. */
function unbounded(schema: Json, at: string, seen: Set<string> = new Set()): string[] {
  if (schema === null || typeof schema !== "object") return [];
  if (schema.$ref) {
    const name = schema.$ref.split("/").at(-1);
    return seen.has(name) ? [] : unbounded(document.components.schemas[name], at, new Set([...seen, name]));
  }
  const types = [schema.type].flat();
  const found: string[] = [];
  if (
    types.includes("string") &&
    !schema.enum &&
    !schema.const &&
    schema.maxLength === undefined &&
    schema.format !== "binary" &&
    !schema.pattern
  )
    found.push(at);
  if (
    (types.includes("number") || types.includes("integer")) &&
    schema.maximum === undefined &&
    schema.exclusiveMaximum === undefined
  )
    found.push(at);
  if (types.includes("array") && schema.maxItems === undefined && !schema.prefixItems) found.push(at);
  for (const [name, inner] of Object.entries(schema.properties ?? {}))
    found.push(...unbounded(inner, `${at}.${name}`, seen));
  for (const part of [...(schema.anyOf ?? []), ...(schema.oneOf ?? []), ...(schema.allOf ?? [])])
    found.push(...unbounded(part, at, seen));
  if (schema.items) found.push(...unbounded(schema.items, `${at}[]`, seen));
  return found;
}

test("SEC-20, API-12: every number, text and list a request may carry has a bound", () => {
  for (const [path, methods] of Object.entries(document.paths)) {
    for (const [method, operation] of Object.entries(methods as Record<string, Json>)) {
      const bodies = Object.values(operation.requestBody?.content ?? {}) as Json[];
      for (const { schema } of bodies) expect(unbounded(schema, `${method} ${path}`)).toEqual([]);
      for (const parameter of operation.parameters ?? [])
        expect(unbounded(parameter.schema, `${method} ${path} ${parameter.name}`)).toEqual([]);
    }
  }
});

test("the document does not change between two builds of it", () => {
  expect(JSON.stringify(openapiDocument(world.router))).toBe(JSON.stringify(openapiDocument(world.router)));
});

test("the config schema is JSON Schema draft-07", async () => {
  const { json } = await world.send("GET", "/api/schemas/config");
  expect(json.$schema).toBe("http://json-schema.org/draft-07/schema#");
  expect(Object.keys(json.properties)).toEqual(expect.arrayContaining(["server", "database_url", "models", "runs"]));
});
