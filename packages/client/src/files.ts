/** Data files: uploading as a stream, and what reading them found. */
import {
  type DataObject,
  dataListSchema,
  dataObjectSchema,
  deletedSchema,
  type FileObject,
  fileObjectSchema,
  maxFileBytes,
  maxPartBytes,
  uploadObjectSchema,
  uploadPartObjectSchema,
} from "@fettle/contract";
import type { Connection } from "./connection.js";
import { FettleError } from "./error.js";

/** Something to upload. `read` is called once a try; `start` and `end` are bytes, `end` not included. */
export interface FileSource {
  name: string;
  size: number;
  read(range?: { start: number; end: number }): AsyncIterable<Uint8Array>;
}

export class Files {
  constructor(private readonly connection: Connection) {}

  /** Streams the file; one over 512 MB goes in parts. Memory use does not grow with its size. */
  async upload(
    source: FileSource,
    options: { purpose?: string; onProgress?: (bytes: number) => void; signal?: AbortSignal } = {},
  ): Promise<FileObject> {
    if (source.size > maxFileBytes) return this.uploadInParts(source, options);
    const body = () =>
      multipart({
        fields: { purpose: options.purpose ?? "fine-tune" },
        file: { field: "file", name: source.name },
        bytes: counted(source.read(), options.onProgress),
      });
    return this.connection.json({ method: "POST", path: "/v1/files", body, ...signalOf(options) }, fileObjectSchema);
  }

  private async uploadInParts(
    source: FileSource,
    options: { purpose?: string; onProgress?: (bytes: number) => void; signal?: AbortSignal },
  ): Promise<FileObject> {
    const { purpose = "fine-tune", onProgress } = options;
    const json = { filename: source.name, purpose, bytes: source.size, mime_type: "application/jsonl" };
    const upload = await this.connection.json(
      { method: "POST", path: "/v1/uploads", json, ...signalOf(options) },
      uploadObjectSchema,
    );
    const path = `/v1/uploads/${encodeURIComponent(upload.id)}`;
    const partIds: string[] = [];
    for (let start = 0; start < source.size; start += maxPartBytes) {
      const end = Math.min(start + maxPartBytes, source.size);
      const progress = onProgress && ((bytes: number) => onProgress(start + bytes));
      const body = () =>
        multipart({
          fields: {},
          file: { field: "data", name: "part" },
          bytes: counted(source.read({ start, end }), progress),
        });
      partIds.push(
        (
          await this.connection.json(
            { method: "POST", path: `${path}/parts`, body, ...signalOf(options) },
            uploadPartObjectSchema,
          )
        ).id,
      );
    }
    const done = await this.connection.json(
      { method: "POST", path: `${path}/complete`, json: { part_ids: partIds }, ...signalOf(options) },
      uploadObjectSchema,
    );
    if (done.file === undefined)
      throw new FettleError(`The upload ${upload.id} was completed, but the answer holds no file.`, {
        status: 200,
        code: "invalid_response",
      });
    return done.file;
  }

  delete(fileId: string): Promise<{ id: string; deleted: true }> {
    return this.connection.json({ method: "DELETE", path: `/v1/files/${encodeURIComponent(fileId)}` }, deletedSchema);
  }
}

export class Data {
  constructor(private readonly connection: Connection) {}

  list(query: { after?: string; limit?: number } = {}): Promise<{ data: DataObject[]; has_more: boolean }> {
    return this.connection.json({ method: "GET", path: "/api/data", query }, dataListSchema);
  }

  get(fileId: string): Promise<DataObject> {
    return this.connection.json({ method: "GET", path: `/api/data/${encodeURIComponent(fileId)}` }, dataObjectSchema);
  }

  /** Waits until the server has read the file: its status is then `processed` or `error`. */
  async waitUntilRead(
    fileId: string,
    { signal, pollMs = 200 }: { signal?: AbortSignal; pollMs?: number } = {},
  ): Promise<DataObject> {
    for (;;) {
      const data = await this.get(fileId);
      if (data.status !== "uploaded") return data;
      signal?.throwIfAborted();
      await new Promise((resolve) => setTimeout(resolve, pollMs));
    }
  }
}

const signalOf = ({ signal }: { signal?: AbortSignal }): { signal?: AbortSignal } =>
  signal === undefined ? {} : { signal };

async function* counted(
  bytes: AsyncIterable<Uint8Array>,
  onProgress: ((bytes: number) => void) | undefined,
): AsyncGenerator<Uint8Array> {
  let total = 0;
  for await (const chunk of bytes) {
    yield chunk;
    total += chunk.byteLength;
    onProgress?.(total);
  }
}

interface Form {
  fields: Record<string, string>;
  file: { field: string; name: string };
  bytes: AsyncIterable<Uint8Array>;
}

function multipart({ fields, file, bytes }: Form): { type: string; stream: AsyncIterable<Uint8Array> } {
  const boundary = `fettle-${crypto.randomUUID()}`;
  const encoder = new TextEncoder();
  // Quotes and line ends are escaped as browsers do.
  const quoted = (text: string) => text.replaceAll('"', "%22").replaceAll("\r", "%0D").replaceAll("\n", "%0A");
  async function* stream(): AsyncGenerator<Uint8Array> {
    for (const [name, value] of Object.entries(fields)) {
      yield encoder.encode(
        `--${boundary}\r\ncontent-disposition: form-data; name="${quoted(name)}"\r\n\r\n${value}\r\n`,
      );
    }
    const disposition = `form-data; name="${quoted(file.field)}"; filename="${quoted(file.name)}"`;
    yield encoder.encode(
      `--${boundary}\r\ncontent-disposition: ${disposition}\r\ncontent-type: application/octet-stream\r\n\r\n`,
    );
    yield* bytes;
    yield encoder.encode(`\r\n--${boundary}--\r\n`);
  }
  return { type: `multipart/form-data; boundary=${boundary}`, stream: stream() };
}
