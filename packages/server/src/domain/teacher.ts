/** Whose answers a run may learn beside its labels. Pure. */
import type { Task } from "@fettle/contract";
import type { DomainRefusal } from "./refusal.js";

/** One answer a row, which another model may give too. */
export const taughtTasks: readonly Task[] = ["classification", "multilabel_classification", "regression"];

interface Candidate {
  name: string;
  task: Task;
  labels: readonly string[] | null;
}

export interface Teaching {
  teacher: string;
  /** What the teacher was tuned for; null for a base model. */
  tunedFor: Task | null;
  knows: readonly string[] | null;
  /** Of the run; null while it is not known. */
  task: Task | null;
  labels: readonly string[] | null;
  /** The project's tuned models: for naming one that could. */
  candidates: readonly Candidate[];
}

/** Null when it may teach; what is not known yet is left for later. */
export function teacherRefusal(teaching: Teaching): DomainRefusal | null {
  const why = reasonAgainst(teaching);
  if (why === null) return null;
  const { task, candidates, teacher } = teaching;
  const could = candidates.find(
    (one) => one.name !== teacher && reasonAgainst({ ...teaching, tunedFor: one.task, knows: one.labels }) === null,
  );
  const instead =
    task !== null && !taughtTasks.includes(task)
      ? "Leave the teacher out."
      : could === undefined
        ? "Tune a model for it first and name that one, or leave the teacher out."
        : `The model "${could.name}" could teach it.`;
  return { code: "incompatible_method", param: "teacher", message: `${why} ${instead}` };
}

function reasonAgainst({ teacher, tunedFor, knows, task, labels }: Teaching): string | null {
  if (task !== null && !taughtTasks.includes(task))
    return `The task "${task}" is not learnt from a teacher: only ${listed(taughtTasks)} are, whose rows have one answer each.`;
  if (tunedFor === null)
    return `"${teacher}" is a base model, which gives no answers to learn from: expected a model tuned for ${task ?? listed(taughtTasks)}.`;
  if (!taughtTasks.includes(tunedFor) || (task !== null && tunedFor !== task))
    return `"${teacher}" was tuned for the task "${tunedFor}": expected a teacher tuned for ${task ?? listed(taughtTasks)}.`;
  if (labels === null) return null;
  const lacking = labels.filter((label) => !knows?.includes(label));
  const more = (knows ?? []).filter((label) => !labels.includes(label));
  if (lacking.length === 0 && more.length === 0) return null;
  const parts = [
    ...(lacking.length > 0 ? [`it does not know ${named(lacking)}`] : []),
    ...(more.length > 0 ? [`the training file has no row of its ${named(more)}`] : []),
  ];
  return `"${teacher}" has other labels than this run: ${parts.join(", and ")}.`;
}

const listed = (names: readonly string[]): string => `${names.slice(0, -1).join(", ")} and ${names.at(-1) ?? ""}`;

const named = (labels: readonly string[]): string =>
  labels
    .slice(0, 8)
    .map((label) => `"${label}"`)
    .join(", ") + (labels.length > 8 ? ` and ${labels.length - 8} more` : "");
