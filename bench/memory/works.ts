/** The trainer bench's works, and the same kinds in sizes that no figure of the prediction was made from. */
import type { TrainSpec } from "@fettle/contract";
import { type Work, works } from "../trainer/works.js";

export interface MemoryWork {
  name: string;
  work: Work;
  /** False where the prediction's measured parts come from this work. */
  heldOut: boolean;
  dtype: Dtype;
}

type Dtype = Exclude<TrainSpec["runtime"]["dtype"], "auto">;
type Change = Partial<Work> & { dtype?: Dtype };

const named = (name: string): Work => {
  const found = works.find((work) => work.name === name);
  if (found === undefined) throw new Error(`there is no work ${name}`);
  return found;
};

/** `type`: of the products, but where a work names its own. */
export const memoryWorks = (type: Dtype): readonly MemoryWork[] => {
  const other = (name: string, kind: string, { dtype = type, ...change }: Change): MemoryWork => ({
    name,
    work: { ...named(kind), ...change, name },
    heldOut: true,
    dtype,
  });
  // The prediction was set by these, in both types; of embeddings in bf16 it knows only what it knows of encoders.
  const base = works.map((work): MemoryWork => {
    return { name: work.name, work, heldOut: type === "bfloat16" && work.kind === "embeddings", dtype: type };
  });
  return [
    ...base,
    other("decoder-lora-4-rows", "decoder-lora", { rowsPerStep: 4, defaultSteps: 16 }),
    other("decoder-full-half", "decoder-full", { numLayers: 15, rowsPerStep: 4 }),
    other("encoder-12-layers", "encoder", { numLayers: 12, rowsPerStep: 16, defaultSteps: 30 }),
    other("encoder-mail-fp32", "encoder-mail", { rowsPerStep: 8, dtype: "float32" }),
    other("encoder-mail-3-layers", "encoder-mail", { numLayers: 3, rowsPerStep: 32, defaultSteps: 12 }),
    other("seq2seq-8-rows", "seq2seq", { rowsPerStep: 8, defaultSteps: 24 }),
    other("seq2seq-3-layers", "seq2seq", { numLayers: 3 }),
  ];
};
