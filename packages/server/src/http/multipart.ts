/**
 * Multipart forms, streamed: the file part goes to `sink` while it arrives, fields in either order around it.
 * Nothing but the short fields is held in memory.
 */
import { Readable } from "node:stream";
import { Busboy, type BusboyFileStream, type BusboyHeaders, type BusboyInstance } from "@fastify/busboy";
import type { Context } from "hono";
import { AppError } from "../domain/error.js";
import type { HttpEnv } from "./deps.js";

export interface Form<T> {
  /** Names with brackets are objects: `expires_after[seconds]` gives `{expires_after: {seconds}}`. */
  fields: Record<string, unknown>;
  file: { filename: string; kept: T } | null;
}

export interface FormOptions<T> {
  /** The part that holds the bytes: "file" or "data". */
  fileField: string;
  maxBytes: number;
  sink: (bytes: AsyncIterable<Uint8Array>) => Promise<T>;
  /** Undoes `sink` when the form turns out to be broken after it. */
  drop: (kept: T) => Promise<void>;
}

/** The body as Node gave it when there is a socket (fast, with back-pressure), else as the web stream of a test. */
export function bodyOf(context: Context<HttpEnv>): Readable {
  const incoming = context.env?.incoming;
  if (incoming !== undefined) return incoming;
  const { body } = context.req.raw;
  return body === null ? Readable.from([]) : Readable.fromWeb(body as Parameters<typeof Readable.fromWeb>[0]);
}

export async function readForm<T>(
  body: Readable,
  headers: { contentType: string | undefined },
  options: FormOptions<T>,
): Promise<Form<T>> {
  const parser = openParser(headers.contentType, options);
  const fields: Record<string, unknown> = {};
  let file: Promise<{ filename: string; kept: T }> | null = null;
  let current: BusboyFileStream | null = null;
  let broken: unknown = null;
  const fail = (error: unknown): void => {
    broken ??= error instanceof AppError ? error : endsEarly(error);
    body.unpipe(parser);
    parser.destroy();
    // Whoever reads the file part must not wait for bytes that never come.
    current?.destroy(new Error("form broken"));
    // The rest of a refused body is read and thrown away, so that the client sees the answer and not a reset.
    body.resume();
  };
  parser.on("field", (name, value) => setField(fields, name, value));
  parser.on("file", (name, stream, filename) => {
    if (name !== options.fileField || file !== null) {
      stream.resume();
      fail(
        new AppError(
          "invalid_request",
          `The form has an unexpected file part "${String(name).slice(0, 64)}": expected exactly one, named "${options.fileField}".`,
          { param: options.fileField },
        ),
      );
      return;
    }
    current = stream;
    // Without a listener of its own a torn stream would end the process.
    stream.on("error", fail);
    stream.on("limit", () => fail(tooLarge(options)));
    file = options.sink(stream as AsyncIterable<Uint8Array>).then((kept) => ({ filename: baseName(filename), kept }));
    file.catch(fail);
  });
  await new Promise<void>((resolve) => {
    parser.on("finish", resolve);
    parser.on("close", resolve);
    const end = (error: unknown): void => {
      fail(error);
      resolve();
    };
    parser.on("error", end);
    body.on("error", end);
    body.on("close", () => {
      if (!body.readableEnded) end(new Error("connection closed"));
    });
    body.pipe(parser);
  });
  return settle({ fields, file, broken: () => broken, drop: options.drop });
}

async function settle<T>(state: {
  fields: Record<string, unknown>;
  file: Promise<{ filename: string; kept: T }> | null;
  broken: () => unknown;
  drop: (kept: T) => Promise<void>;
}): Promise<Form<T>> {
  const file = await (state.file ?? Promise.resolve(null)).catch((error: unknown) => {
    throw state.broken() ?? error;
  });
  if (state.broken() !== null) {
    if (file !== null) await state.drop(file.kept);
    throw state.broken();
  }
  return { fields: state.fields, file };
}

function openParser(contentType: string | undefined, options: { maxBytes: number }): BusboyInstance {
  if (!contentType?.toLowerCase().startsWith("multipart/form-data")) {
    throw new AppError(
      "invalid_request",
      `The content-type is "${contentType?.slice(0, 100) ?? "missing"}": expected multipart/form-data.`,
      { param: "content-type" },
    );
  }
  const headers: BusboyHeaders = { "content-type": contentType };
  try {
    return new Busboy({
      headers,
      limits: {
        fieldNameSize: 128,
        fieldSize: 64 * 1024,
        fields: 32,
        files: 2,
        parts: 34,
        headerPairs: 100,
        fileSize: options.maxBytes,
      },
    });
  } catch (cause) {
    throw new AppError(
      "invalid_request",
      "The multipart form names no boundary in its content-type. Let your HTTP library set the header.",
      { param: "content-type", cause },
    );
  }
}

const endsEarly = (cause: unknown): AppError =>
  new AppError("invalid_request", "The multipart form ends early or is malformed. Send it again whole.", { cause });

const tooLarge = ({ maxBytes, fileField }: { maxBytes: number; fileField: string }): AppError =>
  new AppError(
    "body_too_large",
    `The part "${fileField}" is larger than ${maxBytes} bytes. Send it through /v1/uploads in parts of at most 64 MB.`,
    { param: fileField },
  );

/** A path in a file name is never followed; only its last step is kept, as a label. */
function baseName(filename: string | undefined): string {
  const last = (filename ?? "").split(/[\\/]/).at(-1) ?? "";
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is removed
  const clean = last.replaceAll(/[\u0000-\u001f\u007f]/g, "").slice(0, 255);
  return clean === "" ? "upload" : clean;
}

function setField(fields: Record<string, unknown>, name: string, value: string): void {
  const nested = /^([a-z_]{1,64})\[([a-z_]{1,64})\]$/.exec(name);
  if (nested === null) {
    if (/^[a-zA-Z_.-]{1,64}$/.test(name) && name !== "__proto__") fields[name] = value;
    return;
  }
  const [, outer = "", inner = ""] = nested;
  const existing = fields[outer];
  const group = typeof existing === "object" && existing !== null ? existing : {};
  fields[outer] = { ...group, [inner]: value };
}
