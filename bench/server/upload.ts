/** Large uploads, streamed from memory that does not grow: as one multipart file, and in parts. */
import { once } from "node:events";
import { request } from "node:http";

export interface Target {
  url: string;
  key: string;
}
const chunk = Buffer.alloc(256 * 1024, "fettle\n");
const boundary = "fettle-bench-boundary";

/** A form with one file of `bytes` under `field`; gives the parsed answer. */
export async function sendForm(
  target: Target,
  form: { path: string; field: string; bytes: number; purpose?: string },
): Promise<{ id: string }> {
  const purpose = form.purpose
    ? `--${boundary}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\n${form.purpose}\r\n`
    : "";
  const head = `${purpose}--${boundary}\r\ncontent-disposition: form-data; name="${form.field}"; filename="bench.bin"\r\ncontent-type: application/octet-stream\r\n\r\n`;
  const tail = `\r\n--${boundary}--\r\n`;
  const call = request(target.url + form.path, {
    method: "POST",
    headers: {
      authorization: `Bearer ${target.key}`,
      "content-type": `multipart/form-data; boundary=${boundary}`,
      "content-length": head.length + form.bytes + tail.length,
    },
  });
  const answered = once(call, "response");
  call.write(head);
  for (let left = form.bytes; left > 0; left -= chunk.length) {
    if (!call.write(left >= chunk.length ? chunk : chunk.subarray(0, left))) await once(call, "drain");
  }
  call.end(tail);
  const [response] = await answered;
  let text = "";
  for await (const piece of response) text += String(piece);
  if (response.statusCode !== 200) throw new Error(`POST ${form.path} answered ${response.statusCode}: ${text}`);
  return JSON.parse(text);
}

export async function sendJson<T>(
  target: Target,
  path: string,
  options: { method?: string; body?: object } = {},
): Promise<T> {
  const response = await fetch(target.url + path, {
    method: options.method ?? "POST",
    headers: { authorization: `Bearer ${target.key}`, "content-type": "application/json" },
    ...(options.body && { body: JSON.stringify(options.body) }),
  });
  if (!response.ok) throw new Error(`${path} answered ${response.status}: ${await response.text()}`);
  return (await response.json()) as T;
}

/** Returns the id of the file made of parts of 64 MiB. */
export async function sendInParts(target: Target, bytes: number): Promise<string> {
  const partBytes = 64 * 1024 * 1024;
  const upload = await sendJson<{ id: string }>(target, "/v1/uploads", {
    body: { filename: "bench.bin", purpose: "user_data", bytes, mime_type: "application/octet-stream" },
  });
  const part_ids: string[] = [];
  for (let left = bytes; left > 0; left -= partBytes) {
    part_ids.push(
      (
        await sendForm(target, {
          path: `/v1/uploads/${upload.id}/parts`,
          field: "data",
          bytes: Math.min(left, partBytes),
        })
      ).id,
    );
  }
  const done = await sendJson<{ file: { id: string; bytes: number } }>(target, `/v1/uploads/${upload.id}/complete`, {
    body: { part_ids },
  });
  if (done.file.bytes !== bytes) throw new Error(`The file has ${done.file.bytes} bytes, ${bytes} were sent.`);
  return done.file.id;
}
