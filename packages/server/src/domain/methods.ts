/** What each method trains of a model, and what it leaves. Pure. */
import type { Method } from "@fettle/contract";

export interface MethodFacts {
  /** "trains ..." */
  trains: string;
  /** An adapter needs its base beside it; a model stands alone. */
  leaves: "adapter" | "model";
  /** Looks at lora_r, lora_alpha, lora_dropout and target_modules. */
  hasRank: boolean;
}

export const methodFacts: Record<Method, MethodFacts> = {
  lora: { trains: "low-rank changes of linear layers", leaves: "adapter", hasRank: true },
  rslora: {
    trains: "as lora, its change scaled by 1/√r instead of 1/r: high ranks learn as fast as low ones",
    leaves: "adapter",
    hasRank: true,
  },
  dora: {
    trains: "as lora, and the length of each row of a layer's weight by itself; slower, often a little better",
    leaves: "adapter",
    hasRank: true,
  },
  qlora: {
    trains: "as lora, over a base kept in 4 bits, a quarter of the memory; on a GPU alone ([more](gpu.md#qlora))",
    leaves: "adapter",
    hasRank: true,
  },
  ia3: {
    trains: "a factor for each channel of keys, values and the feed-forward's second layer: a few thousand numbers",
    leaves: "adapter",
    hasRank: false,
  },
  prompt: {
    trains: "`num_virtual_tokens` embeddings that a decoder reads before each row; slow to learn, a few kilobytes",
    leaves: "adapter",
    hasRank: false,
  },
  prefix: {
    trains: "as prompt, but the keys and values of those tokens in every layer",
    leaves: "adapter",
    hasRank: false,
  },
  full: { trains: "every weight", leaves: "model", hasRank: false },
  freeze: {
    trains: "the last `trainable_layers` layers (of an encoder-decoder: of its decoder), and a new head",
    leaves: "model",
    hasRank: false,
  },
  head: { trains: "a new classification head over a frozen model", leaves: "model", hasRank: false },
};

export const leavesAdapter = (method: Method | undefined): boolean =>
  method !== undefined && methodFacts[method].leaves === "adapter";

/** Virtual tokens stand before a text and are no change of a weight: there is nothing to fold in. */
export const readsVirtualTokens = (method: Method): boolean => method === "prompt" || method === "prefix";

export const hasRank = (method: Method): boolean => methodFacts[method].hasRank;
