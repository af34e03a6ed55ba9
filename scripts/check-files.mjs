/** The repository's own files, and what every house rule needs to know about one. */
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { basename, extname, join, resolve } from "node:path";

/** The folder to look at: this repository, or the one named on the command line. */
export const root = resolve(process.argv[2] ?? join(import.meta.dirname, ".."));

/** Tracked files and new ones git would not ignore; gone ones left out. Paths are relative, with `/`. */
export function repositoryFiles() {
  const out = execFileSync("git", ["ls-files", "-co", "--exclude-standard", "-z"], { cwd: root, encoding: "utf8" });
  const paths = [...new Set(out.split("\0").filter((path) => path !== ""))].sort();
  return paths.filter((path) => existsSync(join(root, path))).map((path) => new SourceFile(path));
}

export class SourceFile {
  #text;

  constructor(path) {
    this.path = path;
    this.name = basename(path);
    this.extension = extname(path);
  }

  get text() {
    this.#text ??= readFileSync(join(root, this.path), "utf8");
    return this.#text;
  }

  get isScript() {
    return [".ts", ".tsx", ".mjs", ".js"].includes(this.extension);
  }

  get isPython() {
    return this.extension === ".py";
  }

  get isCode() {
    return this.isScript || this.isPython;
  }

  get isTest() {
    return /(^|\/)tests?\//.test(this.path);
  }

  /** Text a person reads or a program runs, as opposed to locks and data. */
  get isProse() {
    return this.isCode || [".md", ".json", ".yaml", ".yml", ".toml", ".cjs", ".sql", ".sh"].includes(this.extension);
  }

  lineOf(offset) {
    return this.text.slice(0, offset).split("\n").length;
  }

  at(offset, message) {
    return `${this.path}:${this.lineOf(offset)} ${message}`;
  }
}
