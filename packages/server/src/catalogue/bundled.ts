/** The models that travel inside Python packages: models.json, shared with the trainer that fetches them. */
import { readFile } from "node:fs/promises";
import { familySchema } from "@fettle/contract";
import { z } from "zod";

const bundledSchema = z.object({
  version: z.literal(1),
  models: z.array(
    z.object({
      name: z.string(),
      family: familySchema,
      num_parameters: z.number().int(),
      hidden_size: z.number().int(),
      num_layers: z.number().int(),
      vocab_size: z.number().int(),
      context_length: z.number().int(),
      licence: z.string(),
    }),
  ),
});
export type BundledModel = z.infer<typeof bundledSchema>["models"][number];

/** Throws when the file is not the one of this version: an installation fault, not a user's. */
export async function readBundled(path: string): Promise<BundledModel[]> {
  return bundledSchema.parse(JSON.parse(await readFile(path, "utf8"))).models;
}
