/** The classes of a classification run. Pure. */
import { nearestName } from "./nearest.js";
import { type Decided, decided, refused } from "./refusal.js";

export interface LabelCounts {
  training: Readonly<Record<string, number>>;
  validation: Readonly<Record<string, number>> | null;
  /** Classes of the tuned model that is gone on from; its head has one output for each, in this order. */
  inherited: readonly string[] | null;
  task: LabelTask;
}

export type LabelTask = "classification" | "multilabel_classification" | "token_classification";

/** Classes exclude each other, so one alone says nothing; labels and entities need not be there. */
const fewestLabels: Record<LabelTask, number> = {
  classification: 2,
  multilabel_classification: 1,
  token_classification: 1,
};

export interface LabelSet {
  /** In id order: by number when all are whole numbers, else by character codes. */
  labels: string[];
  warnings: string[];
}

export function labelSet({ training, validation, inherited, task }: LabelCounts): Decided<LabelSet> {
  const names = Object.keys(training).sort(byLabel);
  if (inherited !== null) {
    const strange = names.find((name) => !inherited.includes(name));
    if (strange !== undefined) {
      return refused(
        "incompatible_method",
        "model",
        `The training file has the label "${strange}", which the tuned model does not know: expected only ${list(inherited)}. Begin from the base model, or rename the label.`,
      );
    }
  } else if (task !== "classification" && names.length < fewestLabels[task]) {
    const what = task === "token_classification" ? "an entity" : "a label";
    return refused(
      "invalid_training_file",
      "training_file",
      `No row of the training file has ${what}: expected at least one to learn. Add rows that have some.`,
    );
  } else if (names.length < fewestLabels[task]) {
    const found = names.length === 0 ? "no label" : `only the label "${names[0]}"`;
    return refused(
      "invalid_training_file",
      "training_file",
      `The training file has ${found}: expected at least two classes to tell apart. Add rows of another class.`,
    );
  }
  const labels = inherited === null ? names : [...inherited];
  const unknown = Object.keys(validation ?? {}).filter((name) => !labels.includes(name));
  if (unknown.length > 0) {
    const [first = ""] = unknown;
    const near = nearestName(first, labels);
    const fix =
      near === null ? "Add rows of this class to the training file, or remove them here." : `Did you mean "${near}"?`;
    return refused(
      "invalid_training_file",
      "validation_file",
      `The validation file has the label "${first}", which the training file does not have: expected one of ${list(labels)}. ${fix}`,
    );
  }
  return decided({ labels, warnings: warningsFor(training) });
}

/** A class with few rows is learnt badly, and macro-F1 suffers first. */
function warningsFor(training: Readonly<Record<string, number>>): string[] {
  const rare = Object.entries(training).filter(([, count]) => count < 8);
  if (rare.length === 0) return [];
  const shown = rare
    .slice(0, 8)
    .map(([name, count]) => `"${name}" (${count})`)
    .join(", ");
  return [
    `${rare.length} of ${Object.keys(training).length} classes have fewer than 8 rows and will be learnt badly: ${shown}${rare.length > 8 ? " …" : ""}. Add rows, or merge classes.`,
  ];
}

function byLabel(a: string, b: string): number {
  const whole = /^-?\d+$/;
  if (whole.test(a) && whole.test(b)) return Number(a) - Number(b);
  return a < b ? -1 : a > b ? 1 : 0;
}

const list = (names: readonly string[]): string =>
  names
    .slice(0, 8)
    .map((name) => `"${name}"`)
    .join(", ") + (names.length > 8 ? ` and ${names.length - 8} more` : "");
