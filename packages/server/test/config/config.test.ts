import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { configSchema } from "@fettle/contract";
import { describe, expect, it, onTestFinished } from "vitest";
import { z } from "zod";
import { loadConfig, parseConfig } from "../../src/config.js";

function folder(yaml?: string): string {
  const path = mkdtempSync(join(tmpdir(), "fettle-config-"));
  onTestFinished(() => rmSync(path, { recursive: true }));
  if (yaml !== undefined) writeFileSync(join(path, "fettle.yaml"), yaml);
  return path;
}

function refusal(run: () => unknown): { code: string; message: string } {
  try {
    run();
  } catch (error) {
    return error as { code: string; message: string };
  }
  throw new Error("nothing was refused");
}

describe("fettle.yaml", () => {
  it.each([
    ["server:\n  prot: 80\n", 'f:2:3: unknown key "prot" in server. Did you mean "port"?'],
    ["sever:\n  port: 80\n", 'f:1:1: unknown key "sever" at the top level. Did you mean "server"?'],
    ["zzz: 1\n", 'f:1:1: unknown key "zzz" at the top level. Known: server, database_url, models, runs, inference.'],
    [
      "server:\n  port: http\n",
      'f:2:9: server.port is "http": expected a whole number from 0 to 65535; 0 takes any free port.',
    ],
    [
      "server:\n  port: 70000\n",
      "f:2:9: server.port is 70000: expected a whole number from 0 to 65535; 0 takes any free port.",
    ],
    [
      "runs:\n  max_concurrent: many\n",
      'f:2:19: runs.max_concurrent is "many": expected "auto" (by memory) or a whole number from 1 to 64.',
    ],
    [
      "models:\n  - name: a\n",
      "f:2:5: models[0].path is missing: expected the folder that holds config.json, the tokenizer and safetensors.",
    ],
    [
      "database_url: mysql://root:secret@h/x\n",
      "f:1:15: database_url is something else: expected a PostgreSQL address such as postgres://user:password@host:5432/fettle, or null for the embedded one.",
    ],
    ["- a\n", 'f:1:1: the file is ["a"]: expected a map with the keys server, database_url, models, runs, inference.'],
    ["server: 4\n", "f:1:9: server is 4: expected a map with host, port and allowed_hosts."],
    [
      "server:\n  port: 1\n  port: 2\n",
      "f:3:3: this is not valid YAML: Map keys must be unique. Correct the line; indent with spaces, not tabs.",
    ],
  ])("%j is refused with place and fix", (text, message) => {
    expect(refusal(() => parseConfig(text, "f"))).toMatchObject({ code: "config_invalid", message });
  });

  it("tells every problem at once", () => {
    expect(refusal(() => parseConfig("server: {port: -1, hots: x}\nrun: {}\n", "f")).message.split("\n")).toHaveLength(
      3,
    );
  });

  it("takes an empty file, and fills the defaults in", () => {
    expect(parseConfig("# nothing\n", "f")).toEqual(configSchema.parse({}));
  });

  it("treats prototype names as unknown keys", () => {
    expect(refusal(() => parseConfig("__proto__: {x: 1}\nconstructor: 1\n", "f")).message).toContain(
      'f:2:1: unknown key "constructor"',
    );
    expect(({} as { x?: number }).x).toBeUndefined();
  });

  it("refuses aliases that expand without end", () => {
    const bomb = [
      "a: &a [x,x,x,x,x,x,x,x,x,x]",
      ...["b", "c", "d", "e"].map((key, i) => `${key}: &${key} [${Array(10).fill(`*${"abcd"[i]}`).join(",")}]`),
    ].join("\n");
    expect(refusal(() => parseConfig(bomb, "f")).code).toBe("config_invalid");
  });

  it("is published as JSON Schema draft-07", () => {
    expect(z.toJSONSchema(configSchema, { target: "draft-7", io: "input" })).toMatchObject({
      $schema: "http://json-schema.org/draft-07/schema#",
      additionalProperties: false,
    });
  });
});

describe("loadConfig", () => {
  it("works with nothing at all", () => {
    const config = loadConfig({ env: { HOME: "/nowhere" }, cwd: folder() });
    expect(config).toMatchObject({
      server: { host: "127.0.0.1", port: 4141 },
      databaseUrl: null,
      adminKey: null,
      hub: { offline: false, token: null },
      ci: false,
    });
    expect(config.home).toMatch(/\.fettle$/);
  });

  it("lets a variable beat the file", () => {
    const cwd = folder("server:\n  port: 5000\ndatabase_url: postgres://file/x\n");
    const config = loadConfig({
      env: {
        FETTLE_HOME: "data",
        FETTLE_PORT: "0",
        DATABASE_URL: "postgresql://env/x",
        HF_HUB_OFFLINE: "1",
        HF_TOKEN: "t",
        CI: "true",
        FETTLE_PYTHON: "py",
      },
      cwd,
    });
    expect(config).toMatchObject({
      home: join(cwd, "data"),
      server: { port: 0 },
      databaseUrl: "postgresql://env/x",
      hub: { offline: true, token: "t" },
      ci: true,
      python: "py",
    });
  });

  it("finds the file in the data folder too, and paths in it are relative to it", () => {
    const cwd = folder();
    const home = join(cwd, "home");
    mkdirSync(home);
    writeFileSync(join(home, "fettle.yaml"), "models:\n  - {name: mine, path: ./weights}\n");
    const config = loadConfig({ env: { FETTLE_HOME: home }, cwd });
    expect(config.models).toEqual([{ name: "mine", path: join(home, "weights") }]);
    expect(config.file).toBe(join(home, "fettle.yaml"));
  });

  it.each([
    [
      { FETTLE_PORT: "http" },
      'FETTLE_PORT is "http": expected a whole number from 0 to 65535. Set it to a free port such as 4141, or unset it.',
    ],
    [
      { FETTLE_PORT: "65536" },
      'FETTLE_PORT is "65536": expected a whole number from 0 to 65535. Set it to a free port such as 4141, or unset it.',
    ],
    [
      { DATABASE_URL: "mysql://u:secret@h" },
      'DATABASE_URL begins with "mysql:": expected postgres://user:password@host:5432/name. Unset it to use the embedded PostgreSQL.',
    ],
    [
      { FETTLE_ADMIN_KEY: "two words" },
      "FETTLE_ADMIN_KEY holds a space or a character outside ASCII: a header cannot carry it. Use letters, digits and punctuation.",
    ],
  ])("%j is refused", (env, message) => {
    expect(refusal(() => loadConfig({ env, cwd: folder() }))).toMatchObject({ code: "config_invalid", message });
  });

  it("refuses a short admin key where others can reach the server", () => {
    const cwd = folder("server: {host: 0.0.0.0}\n");
    expect(refusal(() => loadConfig({ env: { FETTLE_ADMIN_KEY: "short" }, cwd })).message).toContain(
      "expected at least 16 characters",
    );
    expect(loadConfig({ env: { FETTLE_ADMIN_KEY: "short" }, cwd: folder() }).adminKey).toBe("short");
  });
});
