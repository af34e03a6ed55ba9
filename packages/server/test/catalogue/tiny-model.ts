/** Writes a folder that reads as a model: a real config and a real safetensors file of a few bytes. */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";

export const bertConfig = {
  model_type: "bert",
  architectures: ["BertModel"],
  hidden_size: 4,
  num_hidden_layers: 1,
  vocab_size: 10,
  max_position_embeddings: 32,
};

export async function writeTinyModel(folder: string, config: object = bertConfig): Promise<void> {
  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, "config.json"), JSON.stringify(config));
  await writeFile(join(folder, "model.safetensors"), safetensors({ a: [10, 4], b: [4] }));
}

function safetensors(shapes: Record<string, number[]>): Buffer {
  let offset = 0;
  const header: Record<string, object> = { __metadata__: { format: "pt" } };
  for (const [name, shape] of Object.entries(shapes)) {
    const bytes = 4 * shape.reduce((product, side) => product * side, 1);
    header[name] = { dtype: "F32", shape, data_offsets: [offset, offset + bytes] };
    offset += bytes;
  }
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, Buffer.alloc(offset)]);
}
