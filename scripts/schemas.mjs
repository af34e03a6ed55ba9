/**
 * `npm run schemas`: writes the contract's file formats as JSON Schema draft-07 to docs/schemas/.
 *
 *   config.json         fettle.yaml (editors complete and check it)
 *   train-spec.json     what the trainer reads
 *   trainer-event.json  one line of events.jsonl
 *   row.json            one line of rows.jsonl, what ingest writes and the trainer reads
 *
 * `--check` writes nothing and ends with 1 when a file is out of date.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { z } from "zod";
import { configSchema } from "../packages/contract/src/config.ts";
import {
  chatRowSchema,
  classificationRowSchema,
  pairRowSchema,
  preferenceRowSchema,
  textRowSchema,
} from "../packages/contract/src/rows.ts";
import { trainerEventSchema, trainSpecSchema } from "../packages/contract/src/trainer.ts";

const folder = join(import.meta.dirname, "..", "docs", "schemas");

/** File name -> text. */
export function schemaFiles() {
  const schemas = {
    "config.json": { title: "fettle.yaml", schema: configSchema },
    "train-spec.json": { title: "TrainSpec", schema: trainSpecSchema },
    "trainer-event.json": { title: "TrainerEvent", schema: trainerEventSchema },
    "row.json": {
      title: "Row",
      schema: z.union([chatRowSchema, classificationRowSchema, pairRowSchema, preferenceRowSchema, textRowSchema]),
    },
  };
  return Object.fromEntries(
    Object.entries(schemas).map(([name, { title, schema }]) => {
      const { $schema, ...rest } = z.toJSONSchema(schema, { target: "draft-7", io: "input" });
      return [name, `${JSON.stringify({ $schema, title, ...rest }, null, 2)}\n`];
    }),
  );
}

function main(args) {
  const check = args.includes("--check");
  const files = Object.entries(schemaFiles());
  const stale = files.filter(
    ([name, text]) => !existsSync(join(folder, name)) || readFileSync(join(folder, name), "utf8") !== text,
  );
  if (check) {
    for (const [name] of stale) console.error(`error: docs/schemas/${name} is out of date. Run \`npm run schemas\`.`);
    return stale.length === 0 ? 0 : 1;
  }
  mkdirSync(folder, { recursive: true });
  for (const [name, text] of stale) writeFileSync(join(folder, name), text);
  console.log(`docs/schemas: ${stale.length} of ${files.length} written.`);
  return 0;
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href)
  process.exitCode = main(process.argv.slice(2));
