import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { schemaFiles } from "../../../scripts/schemas.mjs";

const folder = join(import.meta.dirname, "..", "..", "..", "docs", "schemas");

test.each(Object.entries(schemaFiles()))(
  "docs/schemas/%s is what the contract says: `npm run schemas`",
  (name, text) => {
    expect(readFileSync(join(folder, name), "utf8")).toBe(text);
    expect(JSON.parse(text).$schema).toBe("http://json-schema.org/draft-07/schema#");
  },
);

test("a config and a spec refuse keys they do not know", () => {
  const files = schemaFiles();
  for (const name of ["config.json", "train-spec.json"])
    expect(JSON.parse(files[name] ?? "").additionalProperties).toBe(false);
});
