/** How a command is declared: its name, what it is for, examples, `--json`; and the options that several share. */
import { methodSchema, taskSchema } from "@fettle/contract";
import { type Command, InvalidArgumentError } from "commander";
import type { Context } from "./context.js";
import type { Local } from "./local.js";

export interface Run {
  local: Local;
  /** Makes the context once `--json` is known. */
  context(json: boolean): Context;
  /** Runs a command and keeps its exit code. */
  run(json: boolean, work: () => Promise<number>): Promise<void>;
}

interface Spec {
  name: string;
  summary: string;
  examples: readonly string[];
}

export function withExamples(command: Command, examples: readonly string[]): Command {
  return command.addHelpText("before", `Examples:\n${examples.map((line) => `  ${line}`).join("\n")}\n`);
}

export const number = (text: string): number => {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) throw new InvalidArgumentError("Expected a number.");
  return value;
};
export const collect = (value: string, before: string[]): string[] => [...before, value];

type Action = (context: Context, args: string[], options: Record<string, unknown>) => Promise<number>;
export type Add = (parent: Command, spec: Spec, action: Action) => Command;

export function adder(io: Run): Add {
  return (parent, { name, summary, examples }, action) => {
    const command = withExamples(parent.command(name), examples).description(summary);
    command.option("--json", "one JSON document on stdout, talk on stderr");
    return command.action(async function (this: Command) {
      // `models` has options of its own and commands below: it takes `--json` wherever it stands.
      const options = this.optsWithGlobals();
      const json = options["json"] === true;
      await io.run(json, () =>
        action(
          io.context(json),
          this.processedArgs.flat().filter((arg): arg is string => typeof arg === "string"),
          options,
        ),
      );
    });
  };
}

/** What a run is asked for; each trial of a sweep, each fold of a cross-validation is one. */
export const withRunOptions = (command: Command): Command =>
  command
    .requiredOption("-m, --model <name>", "base or tuned model (names: fettle models)")
    .option("--teacher <name>", "tuned model whose answers are learnt too: same task, same labels")
    .option("--method <method>", `${methodSchema.options.join(", ")} (default: chosen)`)
    .option("--task <task>", `${taskSchema.options.join(", ")} (default: inferred)`)
    .option("--epochs <n>", "num_train_epochs")
    .option("--batch-size <n>", "per_device_train_batch_size")
    .option("--learning-rate <x>", "learning_rate")
    .option("--max-length <n>", "max_length, in tokens")
    .option("--lora-r <n>", "lora_r")
    .option("--set <name=value>", "any other hyperparameter; may be repeated", collect, [])
    .option("--seed <n>", "seed of the run")
    .option("--suffix <text>", "part of the tuned model's name")
    .option("-d, --detach", "do not follow");

export const withValidation = (command: Command): Command =>
  command.option("--validation <file>", "file or data id to validate on (default: held out)");
