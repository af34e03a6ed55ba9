/** One catalogue: the page is made from it, and no code is without a test. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { errorCatalogue, errorType } from "@fettle/contract";
import { describe, expect, it } from "vitest";

const root = join(import.meta.dirname, "..", "..");
const page = readFileSync(join(root, "docs/errors.md"), "utf8");

/** Text of every test but those of the house, which name no code on purpose. */
function testTexts(): string {
  const folders = ["packages/contract/test", "packages/client/test", "packages/server/test", "tests", "trainer/tests"];
  const isTest = (path: string): boolean =>
    /(\.test\.ts|(^|\/)test_\w+\.py)$/.test(path) && !path.startsWith("tests/house/");
  return folders
    .flatMap((folder) => list(folder))
    .filter(isTest)
    .map((path) => readFileSync(join(root, path), "utf8"))
    .join("\n");
}

function list(folder: string): string[] {
  try {
    return readdirSync(join(root, folder), { recursive: true }).map((name) => `${folder}/${String(name)}`);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
    throw error;
  }
}

describe("the error catalogue", () => {
  it("is what docs/errors.md says: the same codes in the same order", () => {
    const headings = [...page.matchAll(/^## (.+)$/gm)].map((match) => match[1]);
    expect(headings).toEqual(Object.keys(errorCatalogue));
  });

  it.each(Object.entries(errorCatalogue))("%s: the page has its status, type, meaning and fix", (code, entry) => {
    const section = page.slice(page.indexOf(`## ${code}\n`)).split("\n## ")[0] ?? "";
    expect(section).toContain(`HTTP ${entry.status} · type \`${errorType(entry.status)}\``);
    expect(section).toContain(entry.meaning);
    expect(section).toContain(entry.fix);
  });

  const texts = testTexts();
  it.each(Object.keys(errorCatalogue))("%s: a test asks for it", (code) => {
    expect(new RegExp(`["'\`]${code}["'\`]`).test(texts), `no test file names ${code}`).toBe(true);
  });
});
