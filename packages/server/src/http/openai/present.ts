/** Records as the OpenAI surface shows them: seconds, and no null where its schema has none. */
import type {
  FileObject,
  JobCheckpointObject,
  JobEventObject,
  JobHyperparameters,
  JobObject,
  OpenAIModel,
  UploadObject,
  UploadPartObject,
} from "@fettle/contract";
import type { FoundModel } from "../../app/models.js";
import type {
  BaseModel,
  CheckpointRecord,
  FileRecord,
  ModelRecord,
  UploadPartRecord,
  UploadRecord,
} from "../../app/ports.js";
import type { Run, RunEvent } from "../../domain/job.js";

export const toSeconds = (ms: number): number => Math.floor(ms / 1000);
export const toSecondsOrNull = (ms: number | null): number | null => (ms === null ? null : toSeconds(ms));

export function fileObject(file: FileRecord): FileObject {
  return {
    id: file.id,
    object: "file",
    bytes: file.bytes,
    created_at: toSeconds(file.createdAt),
    ...(file.expiresAt !== null && { expires_at: toSeconds(file.expiresAt) }),
    filename: file.filename,
    purpose: file.purpose,
    status: file.status,
    ...(file.statusDetails !== null && { status_details: file.statusDetails }),
  };
}

export function uploadObject(upload: UploadRecord, file: FileRecord | null = null): UploadObject {
  return {
    id: upload.id,
    object: "upload",
    bytes: upload.bytes,
    created_at: toSeconds(upload.createdAt),
    expires_at: toSeconds(upload.expiresAt),
    filename: upload.filename,
    purpose: upload.purpose,
    status: upload.status,
    ...(file !== null && { file: fileObject(file) }),
  };
}

export function partObject(part: UploadPartRecord): UploadPartObject {
  return { id: part.id, object: "upload.part", created_at: toSeconds(part.createdAt), upload_id: part.uploadId };
}

/** A new job shows `queued`: client loops of OpenAI's older examples stop at `validating_files`. Our own API shows the true word. */
export function jobObject(run: Run): JobObject {
  const shown = shownHyperparameters(run);
  const method = run.method ?? run.request.method;
  const task = run.task ?? run.request.task;
  return {
    id: run.id,
    object: "fine_tuning.job",
    created_at: toSeconds(run.createdAt),
    model: run.model,
    status: run.status === "validating_files" ? "queued" : run.status,
    training_file: run.trainingFile,
    validation_file: run.validationFile,
    result_files: run.resultFile === null ? [] : [run.resultFile],
    fine_tuned_model: run.fineTunedModel,
    finished_at: toSecondsOrNull(run.finishedAt),
    error: run.error,
    trained_tokens: run.trainedTokens,
    seed: run.seed,
    organization_id: run.projectId,
    hyperparameters: shown,
    method:
      task === "preference"
        ? { type: "dpo", dpo: { hyperparameters: shown, ...(method !== null && { method }) } }
        : {
            type: "supervised",
            supervised: {
              hyperparameters: shown,
              ...(method !== null && { method }),
              ...(task !== null && { task }),
              ...(run.request.teacher !== undefined && { teacher: run.request.teacher }),
            },
          },
    integrations: run.request.integrations as JobObject["integrations"],
    estimated_finish: toSecondsOrNull(run.etaAt),
    metadata: run.metadata,
    user_provided_suffix: run.request.suffix,
  };
}

type OpenAINames = Pick<JobHyperparameters, "n_epochs" | "batch_size" | "learning_rate_multiplier">;

function shownHyperparameters(run: Run): JobObject["hyperparameters"] {
  const { learning_rate_multiplier, ...asked } = run.request.hyperparameters;
  const { num_train_epochs, per_device_train_batch_size, ...own } =
    run.hyperparameters ?? (asked as Omit<JobHyperparameters, keyof OpenAINames>);
  return {
    n_epochs: num_train_epochs ?? "auto",
    batch_size: per_device_train_batch_size ?? "auto",
    learning_rate_multiplier: learning_rate_multiplier ?? (run.hyperparameters === null ? "auto" : 1),
    ...own,
  };
}

export function eventObject(event: RunEvent): JobEventObject {
  return {
    id: event.id,
    object: "fine_tuning.job.event",
    created_at: toSeconds(event.createdAt),
    level: event.level,
    message: event.message,
    type: event.type,
    data: event.data,
  };
}

const checkpointMetrics = [
  "train_loss",
  "train_mean_token_accuracy",
  "valid_loss",
  "valid_mean_token_accuracy",
  "full_valid_loss",
  "full_valid_mean_token_accuracy",
] as const;

export function checkpointObject(checkpoint: CheckpointRecord): JobCheckpointObject {
  const metrics = checkpointMetrics.flatMap((name) =>
    checkpoint.metrics[name] === undefined ? [] : [[name, checkpoint.metrics[name]] as const],
  );
  return {
    id: checkpoint.id,
    object: "fine_tuning.job.checkpoint",
    created_at: toSeconds(checkpoint.createdAt),
    fine_tuning_job_id: checkpoint.runId,
    fine_tuned_model_checkpoint: checkpoint.modelName,
    step_number: checkpoint.step,
    metrics: { step: checkpoint.step, ...Object.fromEntries(metrics) },
  };
}

/** A base model has no date of its own: 0, which sorts before everything tuned here. */
export const baseModelObject = (base: BaseModel): OpenAIModel => ({
  id: base.name,
  object: "model",
  created: 0,
  owned_by: "fettle",
});
export const tunedModelObject = (model: ModelRecord): OpenAIModel => ({
  id: model.name,
  object: "model",
  created: toSeconds(model.createdAt),
  owned_by: model.projectId,
});

export function foundModelObject(found: FoundModel, projectId: string): OpenAIModel {
  if (found.kind === "base") return baseModelObject(found.base);
  if (found.kind === "tuned") return tunedModelObject(found.record);
  return { id: found.name, object: "model", created: toSeconds(found.createdAt), owned_by: projectId };
}
