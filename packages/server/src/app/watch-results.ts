/** The result file of a run: the curves as CSV with OpenAI's columns. */
import type { Run } from "../domain/job.js";
import type { Blobs, FileRecord } from "./ports.js";
import type { Facts } from "./watch-facts.js";

const columns = [
  "step",
  "train_loss",
  "train_mean_token_accuracy",
  "valid_loss",
  "validation_mean_token_accuracy",
  "full_valid_loss",
  "full_valid_mean_token_accuracy",
] as const;

/** One line a step; figures that were not measured at a step are empty. */
export function resultCsv(facts: Facts): string {
  const steps = [...new Set([...facts.steps.keys(), ...facts.evaluations.keys()])].sort((a, b) => a - b);
  const lines = steps.map((step) => {
    const train = facts.steps.get(step);
    const valid = facts.evaluations.get(step);
    return [
      step,
      train?.train_loss,
      train?.train_mean_token_accuracy,
      valid?.valid_loss,
      valid?.valid_mean_token_accuracy,
      valid?.valid_loss,
      valid?.valid_mean_token_accuracy,
    ]
      .map(cell)
      .join(",");
  });
  return `${[columns.join(","), ...lines].join("\n")}\n`;
}

/** Plain finite numbers only: no cell can begin a formula when a spreadsheet opens the file. */
function cell(value: number | undefined): string {
  return value === undefined || !Number.isFinite(value) ? "" : String(value);
}

/** The file's id is the run's own: written again after a crash, it is the same file. */
export async function writeResultFile(
  blobs: Blobs,
  input: { run: Run; facts: Facts; now: number },
): Promise<FileRecord> {
  const { run, now } = input;
  const id = `file-${run.id.replace(/^ftjob-/, "")}`;
  const csv = Buffer.from(resultCsv(input.facts));
  const body = async function* (): AsyncIterable<Uint8Array> {
    yield csv;
  };
  const { bytes, sha256 } = await blobs.put(`files/${id}/original`, body());
  return {
    id,
    projectId: run.projectId,
    filename: "step_metrics.csv",
    purpose: "fine-tune-results",
    bytes,
    sha256,
    status: "processed",
    statusDetails: null,
    createdAt: now,
    expiresAt: null,
    report: null,
    deletedAt: null,
  };
}
