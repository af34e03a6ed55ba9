import { expect, it } from "vitest";
import { dataReader } from "../../src/ingest/read-data.js";

const mebibyte = 1024 * 1024;

/** `total` bytes of rows in pieces of 64 KiB, made as they are asked for. */
async function* generated(row: (index: number) => string, total: number, header = ""): AsyncIterable<Uint8Array> {
  let text = header;
  let index = 0;
  for (let sent = 0; sent < total; ) {
    while (text.length < 65536) text += row(index++);
    sent += text.length;
    yield Buffer.from(text);
    text = "";
    if (index % 50 === 0) await new Promise(setImmediate);
  }
}

it.each([
  [
    "x.jsonl",
    "",
    100,
    (index: number) =>
      `{"messages":[{"role":"user","content":"question ${index} ${"lorem ipsum ".repeat(40)}"},{"role":"assistant","content":"answer ${index}"}]}\n`,
  ],
  ["x.csv", "text,label\n", 40, (index: number) => `"${"lorem ipsum ".repeat(60)}${index}",class ${index % 7}\n`],
])(
  "memory stays flat over %s",
  async (name, header, megabytes, row) => {
    const before = process.memoryUsage().rss;
    let peak = before;
    let rows = 0;
    const report = await dataReader().read(generated(row, megabytes * mebibyte, header), name, {
      row: () => {
        rows += 1;
        if (rows % 5000 === 0) peak = Math.max(peak, process.memoryUsage().rss);
        return undefined;
      },
      fault: () => undefined,
    });
    expect(report).toMatchObject({ numFaults: 0, numUsable: rows });
    expect(rows).toBeGreaterThan(50_000);
    expect(peak - before).toBeLessThan(100 * mebibyte);
  },
  60_000,
);
