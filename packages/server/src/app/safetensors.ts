/** The header of a safetensors file: 8 bytes of length, then JSON that names each tensor. Pure. */
import { z } from "zod";

export const maxHeaderBytes = 100 * 1024 * 1024;

export interface TensorEntry {
  name: string;
  shape: readonly number[];
  /** How many numbers it holds. */
  size: number;
}

const headerSchema = z.record(
  z.string(),
  z.union([z.object({ shape: z.array(z.number().int().nonnegative()) }), z.record(z.string(), z.string())]),
);

/** Throws when it is not such JSON. */
export function tensorsOf(header: string): TensorEntry[] {
  return Object.entries(headerSchema.parse(JSON.parse(header))).flatMap(([name, { shape }]) =>
    name === "__metadata__" || !Array.isArray(shape)
      ? []
      : [{ name, shape, size: shape.reduce((product, side) => product * side, 1) }],
  );
}
