/** Bytes for saving, never for showing: a file that holds HTML must not run in this origin. */
export function download(
  bytes: AsyncIterable<Uint8Array>,
  file: { filename: string; contentType: string; size?: number },
): Response {
  const iterator = bytes[Symbol.asyncIterator]();
  const body = new ReadableStream<Uint8Array>({
    async pull(controller) {
      const next = await iterator.next();
      if (next.done) controller.close();
      else controller.enqueue(next.value);
    },
    async cancel() {
      await iterator.return?.();
    },
  });
  const plain = file.filename.replaceAll(/[^\w.-]/g, "_");
  return new Response(body, {
    headers: {
      "content-type": file.contentType,
      "content-disposition": `attachment; filename="${plain}"; filename*=UTF-8''${encodeURIComponent(file.filename)}`,
      "x-content-type-options": "nosniff",
      ...(file.size !== undefined && { "content-length": String(file.size) }),
    },
  });
}
