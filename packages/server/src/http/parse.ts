/**
 * Requests become values here, or an AppError that names field, value, expectation and nearest known name.
 * Depth is checked before JSON.parse: a value nested 200,000 deep must never reach code that recurses.
 */
import type { ErrorCode, Fault } from "@fettle/contract";
import type { z } from "zod";
import { AppError } from "../domain/error.js";
import { allowedValues } from "../domain/hyperparameters.js";
import { suggestion } from "../domain/nearest.js";

const maxDepth = 64;

export function parseJson(text: string): unknown {
  checkDepth(text);
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new AppError(
      "invalid_request",
      `The request body is not valid JSON${placeOf(cause, text)}. Expected one JSON object, such as {"model": "…"}.`,
      { cause },
    );
  }
}

/** One pass over the text, brackets outside strings counted. */
export function checkDepth(text: string): void {
  let depth = 0;
  let inString = false;
  for (let index = 0; index < text.length; index += 1) {
    const code = text.charCodeAt(index);
    if (inString) {
      if (code === 92) index += 1;
      else if (code === 34) inString = false;
    } else if (code === 34) inString = true;
    else if (code === 123 || code === 91) {
      depth += 1;
      if (depth > maxDepth)
        throw new AppError(
          "value_out_of_range",
          `The request body is nested more than ${maxDepth} levels deep, at character ${index + 1}. Flatten it.`,
        );
    } else if (code === 125 || code === 93) depth -= 1;
  }
}

function placeOf(error: unknown, text: string): string {
  const position = /position (\d+)/.exec(error instanceof Error ? error.message : "")?.[1];
  if (position === undefined) return text.trim() === "" ? ": it is empty" : "";
  const before = text.slice(0, Number(position)).split("\n");
  return `: line ${before.length}, column ${(before.at(-1)?.length ?? 0) + 1}`;
}

/** `where` begins the field names in messages of queries and paths: "query", or "" for a body. */
export function parseWith<S extends z.ZodType>(schema: S, value: unknown, where = ""): z.output<S> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const problems = parsed.error.issues.flatMap((issue) => explain(issue, { schema, value, where }));
  const [first] = problems;
  if (first === undefined)
    throw new AppError("invalid_request", "The request does not fit its schema; see /openapi.json.");
  const others = problems.length > 1 ? ` (${problems.length - 1} more in \`faults\`)` : "";
  throw new AppError(first.code, `${first.message}${others}`, {
    param: first.path,
    details: problems.length > 1 ? { faults: problems.map(asFault) } : {},
  });
}

interface Problem {
  code: ErrorCode;
  path: string | null;
  message: string;
}
const asFault = ({ code, path, message }: Problem): Fault => ({
  ...(path !== null && { path }),
  rule: code,
  message,
  fix: "See the schema of this route in /openapi.json.",
});

interface Where {
  schema: z.ZodType;
  value: unknown;
  where: string;
}
type Path = readonly PropertyKey[];

function explain(issue: z.core.$ZodIssue, at: Where): Problem[] {
  const problems = explainBySchema(issue, at);
  const field = hyperparameterAt(issue.path);
  if (field === null) return problems;
  const auto = schemasAt(at.schema, issue.path).some((schema) => schema.safeParse("auto").success) ? ', or "auto"' : "";
  const message = `${nameOf(issue.path, at)} is ${shown(valueAt(at.value, issue.path))}: expected ${field.expected}${auto}. ${field.advice}`;
  return problems.map((problem) => ({ ...problem, message }));
}

/** A hyperparameter's bounds are told whole, with what is usual. */
function hyperparameterAt(path: Path): ReturnType<typeof allowedValues> {
  const [parent, field] = path.slice(-2);
  return parent === "hyperparameters" && typeof field === "string" ? allowedValues(field) : null;
}

function nameOf(path: Path, { where }: Where): string {
  if (path.length === 0) return where === "" ? "The request body" : `The ${where}`;
  return `\`${dotted(path)}\`${where === "" ? "" : ` of the ${where}`}`;
}

function explainBySchema(issue: z.core.$ZodIssue, at: Where): Problem[] {
  const path = dotted(issue.path);
  const name = nameOf(issue.path, at);
  if (issue.code === "unrecognized_keys") {
    const known = knownKeys(at.schema, issue.path);
    return issue.keys.slice(0, 20).map((key) => {
      const full = dotted([...issue.path, key]).slice(0, 200);
      return {
        code: "unknown_field",
        path: full,
        message: `\`${full}\` is not known${at.where === "" ? "" : ` in the ${at.where}`}.${suggestion(key.slice(0, 64), known)}`,
      };
    });
  }
  if (issue.code === "invalid_union") return [explainUnion(issue, { path, name, at })];
  const value = valueAt(at.value, issue.path);
  const outside = issue.code === "too_big" || issue.code === "too_small";
  const got = value === undefined ? "is missing" : `is ${shown(value)}`;
  return [
    {
      code: outside ? "value_out_of_range" : "invalid_request",
      path: path || null,
      message: `${name} ${got}: expected ${expectation(issue)}.`,
    },
  ];
}

/** The branch that got furthest speaks: a number out of range says so, rather than "not one of two things". */
function explainUnion(
  issue: z.core.$ZodIssueInvalidUnion,
  { path, name, at }: { path: string; name: string; at: Where },
): Problem {
  const branches = issue.errors.filter((issues) => issues.length > 0);
  const telling = branches.find((issues) =>
    issues.every((inner) => (inner.code !== "invalid_type" && inner.code !== "invalid_value") || inner.path.length > 0),
  );
  const [inner] = telling ?? [];
  if (inner !== undefined) {
    const moved = { ...inner, path: [...issue.path, ...inner.path] } as z.core.$ZodIssue;
    const [problem] = explainBySchema(moved, at);
    if (problem !== undefined) return problem;
  }
  const value = valueAt(at.value, issue.path);
  const options = [...new Set(branches.flatMap((issues) => issues.slice(0, 1).map(expectation)))];
  return {
    code: "invalid_request",
    path: path || null,
    message: `${name} is ${shown(value)}: expected ${options.join(", or ") || issue.message}.`,
  };
}

function expectation(issue: z.core.$ZodIssue): string {
  switch (issue.code) {
    case "too_big":
      return `${issue.inclusive === false ? "less than" : "at most"} ${issue.maximum}${unitOf(issue.origin)}`;
    case "too_small":
      return `${issue.inclusive === false ? "more than" : "at least"} ${issue.minimum}${unitOf(issue.origin)}`;
    case "invalid_type":
      return (
        {
          string: "text",
          int: "a whole number",
          number: "a number",
          boolean: "true or false",
          array: "a list",
          object: "an object",
          record: "an object",
        }[issue.expected as string] ?? issue.expected
      );
    case "invalid_value":
      return `${issue.values.length > 1 ? "one of " : ""}${issue.values.map((value) => JSON.stringify(value)).join(", ")}`;
    default:
      return issue.message.replace(/\.$/, "");
  }
}

const unitOf = (origin: string): string => ({ string: " characters", array: " items", set: " items" })[origin] ?? "";

/** Numbers and short words are repeated; texts may be private or long, so only their length is. */
function shown(value: unknown): string {
  if (typeof value === "string")
    return value.length <= 40 ? JSON.stringify(value) : `a text of ${value.length} characters`;
  if (Array.isArray(value)) return `a list of ${value.length}`;
  if (typeof value === "object" && value !== null) return "an object";
  return String(value);
}

function dotted(path: Path): string {
  return path.reduce<string>(
    (text, part) =>
      typeof part === "number" ? `${text}[${part}]` : text === "" ? String(part) : `${text}.${String(part)}`,
    "",
  );
}

function valueAt(value: unknown, path: Path): unknown {
  return path.reduce<unknown>(
    (inside, part) =>
      typeof inside === "object" && inside !== null ? Object.getOwnPropertyDescriptor(inside, part)?.value : undefined,
    value,
  );
}

type Definition = {
  shape?: Record<string, z.ZodType>;
  element?: z.ZodType;
  innerType?: z.ZodType;
  options?: z.ZodType[];
  in?: z.ZodType;
};

/** Every schema that may stand at `path`; unions and wrappers are looked through. */
function schemasAt(schema: z.ZodType, path: Path): z.ZodType[] {
  let layers: z.ZodType[] = [schema];
  for (const part of path) {
    layers = layers.flatMap(unwrapped).flatMap((layer) => {
      const definition = layer._zod.def as Definition;
      const next = typeof part === "number" ? definition.element : definition.shape?.[String(part)];
      return next === undefined ? [] : [next];
    });
  }
  return layers.flatMap(unwrapped);
}

function knownKeys(schema: z.ZodType, path: Path): string[] {
  const layers = schemasAt(schema, path);
  return [...new Set(layers.flatMap((layer) => Object.keys((layer._zod.def as Definition).shape ?? {})))];
}

function unwrapped(schema: z.ZodType): z.ZodType[] {
  const definition = schema._zod.def as Definition;
  if (definition.innerType !== undefined) return unwrapped(definition.innerType);
  if (definition.options !== undefined) return definition.options.flatMap(unwrapped);
  if (definition.in !== undefined) return unwrapped(definition.in);
  return [schema];
}
