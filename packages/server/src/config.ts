/**
 * The only file that reads the environment and fettle.yaml. A variable beats the file; the file beats the default.
 * fettle.yaml is looked for in the working folder, then in FETTLE_HOME.
 */
import { readFileSync } from "node:fs";
import { homedir } from "node:os";
import { isAbsolute, join, resolve } from "node:path";
import { type ConfigFile, configSchema, type Layers } from "@fettle/contract";
import { isMap, isNode, isScalar, LineCounter, parseDocument } from "yaml";
import type { z } from "zod";
import { AppError } from "./domain/error.js";
import { suggestion } from "./domain/nearest.js";

export interface Config {
  /** Absolute path of the data folder. */
  home: string;
  /** The fettle.yaml that was read, or null. */
  file: string | null;
  server: { host: string; port: number; allowedHosts: string[] };
  /** Null: the embedded PostgreSQL. */
  databaseUrl: string | null;
  /** FETTLE_ADMIN_KEY; null: one is generated on the first start. */
  adminKey: string | null;
  /** FETTLE_PYTHON; null: the project's own .venv. */
  python: string | null;
  /** Local model folders; paths are absolute. */
  models: { name: string; path: string }[];
  runs: {
    maxConcurrent: number | "auto";
    checkpointSeconds: number;
    numThreads: number | "auto";
    keepTrainerReady: boolean | "auto";
    layers: Layers;
    /** 0: not known. */
    pricePerHour: number;
  };
  inference: { memoryBytes: number | "auto"; maxQueue: number; idleSeconds: number };
  hub: { offline: boolean; token: string | null };
  ci: boolean;
}

export interface ConfigSource {
  env: Readonly<Record<string, string | undefined>>;
  cwd: string;
}

const maxFileBytes = 1024 * 1024;

/** Throws AppError `config_invalid` naming the variable, or file, line and column, and the nearest known key. */
export function loadConfig({ env, cwd }: ConfigSource): Config {
  const variable = (name: string): string | null => env[name]?.trim() || null;
  const home = absolute(variable("FETTLE_HOME") ?? "~/.fettle", cwd);
  const found = readFirst([join(cwd, "fettle.yaml"), join(home, "fettle.yaml")]);
  const values = found === null ? configSchema.parse({}) : parseConfig(found.text, found.path);
  const base = found === null ? cwd : resolve(found.path, "..");
  const config: Config = {
    home,
    file: found?.path ?? null,
    server: {
      host: values.server.host,
      port: portOf(variable("FETTLE_PORT")) ?? values.server.port,
      allowedHosts: values.server.allowed_hosts,
    },
    databaseUrl: databaseUrlOf(variable("DATABASE_URL")) ?? values.database_url,
    adminKey: variable("FETTLE_ADMIN_KEY"),
    python: variable("FETTLE_PYTHON"),
    models: values.models.map((model) => ({ name: model.name, path: absolute(model.path, base) })),
    runs: {
      maxConcurrent: values.runs.max_concurrent,
      checkpointSeconds: values.runs.checkpoint_seconds,
      numThreads: values.runs.num_threads,
      keepTrainerReady: values.runs.keep_trainer_ready,
      layers: values.runs.layers,
      pricePerHour: values.runs.price_per_hour,
    },
    inference: {
      memoryBytes: values.inference.memory_gb === "auto" ? "auto" : Math.round(values.inference.memory_gb * 1e9),
      maxQueue: values.inference.max_queue,
      idleSeconds: values.inference.idle_seconds,
    },
    hub: { offline: isOn(variable("HF_HUB_OFFLINE")), token: variable("HF_TOKEN") },
    ci: isOn(variable("CI")),
  };
  checkAdminKey(config);
  return config;
}

/** Parses the text of a fettle.yaml; `file` is only for messages. */
export function parseConfig(text: string, file: string): ConfigFile {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false, stringKeys: true });
  const at = (offset: number): string => {
    const { line, col } = lines.linePos(offset);
    return `${file}:${Math.max(line, 1)}:${Math.max(col, 1)}`;
  };
  const [broken] = document.errors;
  if (broken !== undefined) {
    throw new AppError(
      "config_invalid",
      `${at(broken.pos[0])}: this is not valid YAML: ${broken.message.replace(/\.?$/, ".")} Correct the line; indent with spaces, not tabs.`,
    );
  }
  let content: unknown;
  try {
    content = document.toJS({ maxAliasCount: 100 }) ?? {};
  } catch (cause) {
    throw new AppError(
      "config_invalid",
      `${file}: the aliases of this file expand to too much. Write the values out.`,
      { cause },
    );
  }
  const parsed = configSchema.safeParse(content);
  if (parsed.success) return parsed.data;
  const problems = parsed.error.issues.flatMap((issue) => explain(issue, { at, document, content }));
  throw new AppError("config_invalid", problems.map((problem) => problem.message).join("\n"), {
    details: { problems },
  });
}

interface Where {
  at: (offset: number) => string;
  document: ReturnType<typeof parseDocument>;
  content: unknown;
}
interface Problem {
  path: string;
  message: string;
}

function explain(issue: z.core.$ZodIssue, where: Where): Problem[] {
  const path = issue.path.map((part) => (typeof part === "symbol" ? String(part) : part));
  const name = dotted(path);
  if (issue.code === "unrecognized_keys") {
    const known = knownKeys(path);
    return issue.keys.map((key) => ({
      path: dotted([...path, key]),
      message: `${where.at(keyOffset(where, path, key))}: unknown key "${key}" ${name === "" ? "at the top level" : `in ${name}`}.${suggestion(key, known)}`,
    }));
  }
  const value = valueAt(where.content, path);
  // A database address may hold a password: it is never repeated.
  const got = value === undefined ? "is missing" : name === "database_url" ? "is something else" : `is ${shown(value)}`;
  return [
    {
      path: name,
      message: `${where.at(valueOffset(where, path))}: ${name === "" ? "the file" : name} ${got}: expected ${expectation(path)}.`,
    },
  ];
}

const dotted = (path: readonly (string | number)[]): string =>
  path.reduce<string>(
    (text, part) => (typeof part === "number" ? `${text}[${part}]` : text === "" ? part : `${text}.${part}`),
    "",
  );

function shown(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}

function valueAt(content: unknown, path: readonly (string | number)[]): unknown {
  return path.reduce<unknown>(
    (inside, part) =>
      typeof inside === "object" && inside !== null ? Object.getOwnPropertyDescriptor(inside, part)?.value : undefined,
    content,
  );
}

function valueOffset({ document }: Where, path: readonly (string | number)[]): number {
  for (let depth = path.length; depth >= 0; depth -= 1) {
    const node = depth === 0 ? document.contents : document.getIn(path.slice(0, depth), true);
    if (isNode(node) && node.range) return node.range[0];
  }
  return 0;
}

function keyOffset(where: Where, path: readonly (string | number)[], key: string): number {
  const map = path.length === 0 ? where.document.contents : where.document.getIn(path, true);
  if (isMap(map)) {
    const pair = map.items.find((item) => isScalar(item.key) && item.key.value === key);
    if (pair !== undefined && isScalar(pair.key) && pair.key.range) return pair.key.range[0];
  }
  return valueOffset(where, path);
}

/** The schema at `path` from the outside in: wrappers (default, nullable) first, since a description may sit on any of them. */
function layersAt(path: readonly (string | number)[]): z.core.$ZodType[] {
  let layers = unwrap(configSchema);
  for (const part of path) {
    const inner = layers.at(-1);
    const definition = inner?._zod.def as
      | { shape?: Record<string, z.core.$ZodType>; element?: z.core.$ZodType }
      | undefined;
    const next = typeof part === "number" ? definition?.element : definition?.shape?.[part];
    if (next === undefined) return layers;
    layers = unwrap(next);
  }
  return layers;
}

function unwrap(schema: z.core.$ZodType): z.core.$ZodType[] {
  const inner = (schema._zod.def as { innerType?: z.core.$ZodType }).innerType;
  return inner === undefined ? [schema] : [schema, ...unwrap(inner)];
}

function expectation(path: readonly (string | number)[]): string {
  const described = layersAt(path)
    .map((layer) => (layer as z.ZodType).description)
    .find((text) => text !== undefined);
  return described ?? `a map with the keys ${knownKeys(path).join(", ")}`;
}

function knownKeys(path: readonly (string | number)[]): string[] {
  const definition = layersAt(path).at(-1)?._zod.def as { shape?: object } | undefined;
  return Object.keys(definition?.shape ?? {});
}

function readFirst(paths: readonly string[]): { path: string; text: string } | null {
  for (const path of paths) {
    let bytes: Buffer;
    try {
      bytes = readFileSync(path);
    } catch (cause) {
      const reason = (cause as NodeJS.ErrnoException).code;
      if (reason === "ENOENT" || reason === "ENOTDIR") continue;
      throw new AppError("config_invalid", `${path} cannot be read (${reason}). Make it readable, or remove it.`, {
        cause,
      });
    }
    if (bytes.length > maxFileBytes) {
      throw new AppError(
        "config_invalid",
        `${path} has ${bytes.length} bytes: expected at most ${maxFileBytes}. Is this the right file?`,
      );
    }
    return { path, text: bytes.toString("utf8") };
  }
  return null;
}

function absolute(path: string, base: string): string {
  const expanded = path === "~" || path.startsWith("~/") ? join(homedir(), path.slice(1)) : path;
  return isAbsolute(expanded) ? expanded : resolve(base, expanded);
}

function portOf(text: string | null): number | null {
  if (text === null) return null;
  const port = Number(text);
  if (/^\d{1,5}$/.test(text) && port <= 65535) return port;
  throw new AppError(
    "config_invalid",
    `FETTLE_PORT is "${text}": expected a whole number from 0 to 65535. Set it to a free port such as 4141, or unset it.`,
  );
}

function databaseUrlOf(text: string | null): string | null {
  if (text === null || /^postgres(ql)?:\/\//.test(text)) return text;
  // The value may hold a password: only its scheme is repeated.
  const scheme = /^[a-z][a-z0-9+.-]*:/i.exec(text)?.[0] ?? "no scheme";
  throw new AppError(
    "config_invalid",
    `DATABASE_URL begins with "${scheme}": expected postgres://user:password@host:5432/name. Unset it to use the embedded PostgreSQL.`,
  );
}

const isOn = (text: string | null): boolean =>
  text !== null && !["0", "off", "no", "false"].includes(text.toLowerCase());

const loopbackHosts = ["127.0.0.1", "localhost", "::1"];

function checkAdminKey({ adminKey, server }: Config): void {
  if (adminKey === null) return;
  if (/[^\x21-\x7e]/.test(adminKey)) {
    throw new AppError(
      "config_invalid",
      "FETTLE_ADMIN_KEY holds a space or a character outside ASCII: a header cannot carry it. Use letters, digits and punctuation.",
    );
  }
  if (adminKey.length < 16 && !loopbackHosts.includes(server.host)) {
    throw new AppError(
      "config_invalid",
      `FETTLE_ADMIN_KEY has ${adminKey.length} characters and server.host is ${server.host}, which others can reach: expected at least 16 characters. Unset it and one is generated.`,
    );
  }
}
