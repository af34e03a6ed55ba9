/** What a run's log says about the decisions made for it. Pure. */
import type { Method } from "@fettle/contract";
import type { RowFacts } from "./held-out.js";
import type { Chosen } from "../domain/compatibility.js";
import { type Choice, notUsed } from "../domain/hyperparameters.js";
import { gigabytes } from "../domain/estimate.js";
import type { Estimate, Fold } from "../domain/job.js";
import type { Teacher } from "./teacher.js";

export interface Note {
  level: "info" | "warn";
  message: string;
  data?: Record<string, unknown>;
}

export function reasonNotes({ task, method, taskReason, methodReason }: Chosen): Note[] {
  const notes: Note[] = [];
  if (taskReason !== null) notes.push({ level: "info", message: `Task chosen: ${task}, because ${taskReason}.` });
  if (methodReason !== null)
    notes.push({ level: "info", message: `Method chosen: ${method}, because ${methodReason}.` });
  return notes;
}

export const fourBitNotes = (method: Method): Note[] =>
  method !== "qlora"
    ? []
    : [
        {
          level: "info",
          message:
            "The base is kept in 4 bits while the adapter is trained. The adapter is saved for the base as it is, and served, merged and exported over that: its answers there differ a little from those in training.",
        },
      ];

export function teacherNotes(teacher: Teacher | null): Note[] {
  if (teacher === null) return [];
  const { name, base } = teacher.model;
  return [
    {
      level: "info",
      message: `Teacher: ${name}, tuned from ${base.name}. It answers each row to train on once, before the first step; its answers are learnt beside the labels.`,
      data: { teacher: name },
    },
  ];
}

export interface SeenRows {
  facts: RowFacts;
  /** Of reading the training file. */
  notices: readonly string[];
  hasValidationFile: boolean;
  fold: Fold | null;
}

export function rowNotes({ facts, notices, hasValidationFile, fold }: SeenRows): Note[] {
  const notes: Note[] = notices.map((message) => ({
    level: "info",
    message: `Training file: ${message}`,
  }));
  if (!hasValidationFile) {
    notes.push(
      facts.numValidationRows === 0
        ? {
            level: "warn",
            message: `No row is held out for validation: ${facts.numTrainRows} rows are too few to spare some. The last checkpoint is kept, not the best. Give a validation file to change that.`,
          }
        : {
            level: "info",
            message: `${fold === null ? "" : `Fold ${fold.number + 1} of ${fold.of}: `}${facts.numValidationRows} ${facts.numValidationRows === 1 ? "row is" : "rows are"} held out for validation, ${facts.numTrainRows} are trained on; rows of one group or with the same question stay together.`,
          },
    );
  } else if (facts.numLeaked > 0) {
    notes.push({
      level: "warn",
      message: `${facts.numLeaked} of ${facts.numValidationRows} validation rows ask what a training row asks too: validation will look better than it is.`,
    });
  }
  return notes;
}

/** One note a value, so that each reason can be read and searched by itself. */
export function choiceNotes(choices: readonly Choice[]): Note[] {
  const told = choices.filter(({ reason }) => reason !== notUsed);
  const text = (value: unknown): string => (value === null ? "the model's own" : String(value));
  return told.map(({ name, value, reason }) => ({
    level: "info",
    message: `${name} chosen: ${text(value)} (${reason}).`,
    data: { name, value, reason },
  }));
}

export function estimateNote({ tokens, seconds, memoryBytes, basis }: Estimate): Note {
  const [least, most] = seconds;
  return {
    level: "info",
    message: `Estimate: about ${tokens} tokens, ${duration(least)} to ${duration(most)}, ${gigabytes(memoryBytes)} of memory. The time rests on ${basis}.`,
    data: { tokens, seconds, memory_bytes: memoryBytes, basis },
  };
}

function duration(seconds: number): string {
  if (seconds < 120) return `${seconds} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
