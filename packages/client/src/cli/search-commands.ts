/** The commands that start many runs of one file: searching hyperparameters, cross-validation. */
import { pruningSchema, searchSchema } from "@fettle/contract";
import { type Command, Option } from "commander";
import { type Add, collect, number, withRunOptions, withValidation } from "./command.js";
import { crossValidate, type CrossValidateOptions, crossValidations } from "./cross-validate.js";
import { sweeps, tune, type TuneOptions } from "./tune.js";

export function searchCommands(program: Command, add: Add): void {
  tuneCommand(program, add);
  crossValidateCommands(program, add);
}

function tuneCommand(program: Command, add: Add): void {
  const tuning = add(
    program,
    {
      name: "tune <file>",
      summary: "Search hyperparameters: many runs, the best of them, and whether it beats the automatic values.",
      examples: [
        "fettle tune mails.csv --model minilm --trials 12",
        "fettle tune mails.csv --model minilm --minutes 60 --metric f1_macro --prune median",
        "fettle tune tickets.jsonl -m smollm2-135m-instruct --space learning_rate=1e-5..1e-3:log --space lora_r=8,16,32",
      ],
    },
    (context, [file = ""], options) => tune(context, file, options as unknown as TuneOptions),
  );
  withValidation(withRunOptions(tuning))
    .option(
      "--space <name=values>",
      "what is searched: 1,2,4 or MIN..MAX, then :log or :STEP if wanted; may be repeated (default: the learning rate)",
      collect,
      [],
    )
    .option("--search <how>", `${searchSchema.options.join(", ")} (default: random)`)
    .option("--prune <how>", `${pruningSchema.options.join(", ")}: end trials that fall behind (default: none)`)
    .option("--trials <n>", "configurations tried (default: 20, or the whole grid)", number)
    .option("--minutes <n>", "time with a trial at work, the verdict's repeats among it", number)
    .option("--money <x>", "such time at runs.price_per_hour of fettle.yaml", number)
    .option("--metric <name>", "valid_loss, or one of the task such as accuracy (default: valid_loss)")
    .addOption(
      new Option("--minimize", "the metric is better when it is lower (default: by its name)").conflicts("maximize"),
    )
    .option("--maximize", "the metric is better when it is higher")
    .option("--parallel <n>", "trials at once (default: as memory allows)", number)
    .option("--repeats <n>", "runs with other seeds for the verdict (default: 3)", number);

  add(
    program,
    {
      name: "sweeps [id]",
      summary: "Sweeps, newest first; or one with its trials.",
      examples: ["fettle sweeps", "fettle sweeps sweep-abc", "fettle sweeps sweep-abc --cancel"],
    },
    (context, [id], { cancel }) => sweeps(context, { ...(id !== undefined && { id }), cancel: cancel === true }),
  ).option("--cancel", "end it and its trials for good");
}

function crossValidateCommands(program: Command, add: Add): void {
  const validating = add(
    program,
    {
      name: "cross-validate <file>",
      summary: "How good a model is on rows it has not seen, by every row: one run a fold, with mean and interval.",
      examples: [
        "fettle cross-validate mails.csv --model minilm",
        "fettle cross-validate mails.csv --model minilm --folds 10 --epochs 3 --parallel 2",
      ],
    },
    (context, [file = ""], options) => crossValidate(context, file, options as unknown as CrossValidateOptions),
  );
  withRunOptions(validating)
    .option("--folds <k>", "parts of the rows, each held out once: 2 to 20 (default: 5)", number)
    .option("--minutes <n>", "time with a run at work, at most", number)
    .option("--money <x>", "such time at runs.price_per_hour of fettle.yaml", number)
    .option("--parallel <n>", "folds at once (default: as memory allows)", number);

  add(
    program,
    {
      name: "cross-validations [id]",
      summary: "Cross-validations, newest first; or one with its folds.",
      examples: [
        "fettle cross-validations",
        "fettle cross-validations crossval-abc",
        "fettle cross-validations crossval-abc --cancel",
      ],
    },
    (context, [id], { cancel }) =>
      crossValidations(context, { ...(id !== undefined && { id }), cancel: cancel === true }),
  ).option("--cancel", "end it and its runs for good");
}
