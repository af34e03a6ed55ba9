/**
 * fettle.yaml, whole. Every key may be left out; an unknown one is an error. Each `describe` says what the value
 * must be: the error message about a wrong value quotes it. Published as JSON Schema draft-07 by `npm run schemas`.
 */
import { z } from "zod";
import { layersSchema } from "./trainer.js";

const auto = z.literal("auto");

const serverSchema = z.strictObject({
  host: z.string().min(1).max(255).default("127.0.0.1").describe("an address to listen on, such as 127.0.0.1"),
  port: z
    .number()
    .int()
    .min(0)
    .max(65535)
    .default(4141)
    .describe("a whole number from 0 to 65535; 0 takes any free port"),
  allowed_hosts: z
    .array(z.string().min(1).max(255).describe("a host name, such as fettle.example.org"))
    .max(100)
    .default([])
    .describe("a list of at most 100 host names that browsers may use besides localhost"),
});

const modelSchema = z.strictObject({
  name: z
    .string()
    .min(1)
    .max(128)
    .regex(/^[A-Za-z0-9][A-Za-z0-9._/-]*$/)
    .describe("a name of letters, digits and . _ - /, at most 128 characters"),
  path: z.string().min(1).max(4096).describe("the folder that holds config.json, the tokenizer and safetensors"),
});

const runsSchema = z.strictObject({
  max_concurrent: z
    .union([auto, z.number().int().min(1).max(64)])
    .default("auto")
    .describe('"auto" (by memory) or a whole number from 1 to 64'),
  checkpoint_seconds: z.number().min(0).max(86400).default(60).describe("a number of seconds from 0 to 86400"),
  num_threads: z
    .union([auto, z.number().int().min(1).max(256)])
    .default("auto")
    .describe('"auto" (by cores) or a whole number from 1 to 256'),
  keep_trainer_ready: z
    .union([auto, z.boolean()])
    .default("auto")
    .describe('"auto" (where memory allows), true or false'),
  layers: layersSchema
    .default("auto")
    .describe('"auto", "plain", "liger" or "compiled": what computes a model\'s layers (docs/gpu.md)'),
  price_per_hour: z
    .number()
    .min(0)
    .max(1e6)
    .default(0)
    .describe("what an hour of this machine costs, for budgets in money, from 0 (not known) to 1000000"),
});

const inferenceSchema = z.strictObject({
  memory_gb: z
    .union([auto, z.number().positive().max(4096)])
    .default("auto")
    .describe('"auto" (half of the memory) or a number of GB above 0, at most 4096'),
  max_queue: z
    .number()
    .int()
    .min(1)
    .max(10000)
    .default(64)
    .describe("a whole number of waiting requests from 1 to 10000"),
  idle_seconds: z.number().min(1).max(86400).default(600).describe("a number of seconds from 1 to 86400"),
});

export const configSchema = z.strictObject({
  server: serverSchema.prefault({}).describe("a map with host, port and allowed_hosts"),
  database_url: z
    .string()
    .max(4096)
    .regex(/^postgres(ql)?:\/\//)
    .nullable()
    .default(null)
    .describe("a PostgreSQL address such as postgres://user:password@host:5432/fettle, or null for the embedded one"),
  models: z
    .array(modelSchema.describe("a map with name and path"))
    .max(1000)
    .default([])
    .describe("a list of maps with name and path"),
  runs: runsSchema
    .prefault({})
    .describe(
      "a map with max_concurrent, checkpoint_seconds, num_threads, keep_trainer_ready, layers and price_per_hour",
    ),
  inference: inferenceSchema.prefault({}).describe("a map with memory_gb, max_queue and idle_seconds"),
});
export type ConfigFile = z.infer<typeof configSchema>;
