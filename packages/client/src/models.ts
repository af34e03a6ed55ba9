/** A tuned model's files, as they come from the server. */
import {
  errorBodySchema,
  type ExportFormat,
  type ExportQuantize,
  exportErrorName,
  exportMergedHeader,
} from "@fettle/contract";
import type { Connection } from "./connection.js";
import { errorFrom, FettleError } from "./error.js";
import { readTar, type TarEntry } from "./tar.js";

export interface ExportedModel {
  /** False: not asked for, or the model was tuned whole and has nothing to merge. */
  merged: boolean;
  /** Each is to be read to its end. Throws FettleError; a server's error that came after the beginning too. */
  files: AsyncIterable<TarEntry>;
}

export interface ExportOptions {
  merged?: boolean;
  /** Written anew, loaded in a fresh process and compared; without it come the files as the run left them. */
  format?: ExportFormat;
  quantize?: ExportQuantize;
  /** Share of the smallest weights that become zero. */
  prune?: number;
  /** Hears what the server is at while it has nothing to send yet. */
  doing?: (what: string) => void;
  signal?: AbortSignal;
}

export async function exportModel(
  connection: Connection,
  name: string,
  options: ExportOptions,
): Promise<ExportedModel> {
  const { merged, format, quantize, prune } = options;
  const response = await connection.send({
    method: "GET",
    path: `/api/models/${encodeURIComponent(name)}/export`,
    query: {
      merged: String(merged === true),
      ...(format !== undefined && { format }),
      ...(quantize !== undefined && { quantize }),
      ...(prune !== undefined && { prune: String(prune) }),
    },
    headers: { accept: "application/x-tar" },
    ...(options.signal && { signal: options.signal }),
  });
  return {
    merged: response.headers.get(exportMergedHeader) === "true",
    files: filesOf(response, name, options),
  };
}

async function* filesOf(response: Response, name: string, { signal, doing }: ExportOptions): AsyncGenerator<TarEntry> {
  const requestId = response.headers.get("x-request-id");
  const broken = (why: string, cause?: unknown): FettleError =>
    new FettleError(`The export of ${name} broke off: ${why}. Ask again; if it stays, see the server's log.`, {
      status: response.status,
      code: "invalid_response",
      requestId,
      cause,
    });
  const chunks = guarded((response.body ?? []) as AsyncIterable<Uint8Array>, (cause) => {
    if (signal?.aborted) return cause;
    return broken("the connection was cut", cause);
  });
  for await (const file of readTar(chunks, broken, doing)) {
    if (file.name === exportErrorName) throw await toldBy(response, file);
    yield file;
  }
}

async function* guarded(
  chunks: AsyncIterable<Uint8Array>,
  wrap: (cause: unknown) => unknown,
): AsyncGenerator<Uint8Array> {
  const iterator = chunks[Symbol.asyncIterator]();
  try {
    for (;;) {
      const next = await iterator.next().catch((cause: unknown) => {
        throw wrap(cause);
      });
      if (next.done) return;
      yield next.value;
    }
  } finally {
    await iterator.return?.().catch(() => undefined);
  }
}

const maxErrorBytes = 1_000_000;

async function toldBy(response: Response, file: TarEntry): Promise<FettleError> {
  if (file.bytes > maxErrorBytes) return errorFrom(response, null);
  const decoder = new TextDecoder();
  let text = "";
  for await (const part of file.content) text += decoder.decode(part, { stream: true });
  text += decoder.decode();
  try {
    return errorFrom(response, errorBodySchema.parse(JSON.parse(text)));
  } catch {
    return errorFrom(response, null);
  }
}
