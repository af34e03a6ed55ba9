/** Records as our own API shows them: everything a user may know, times in seconds. */
import type { DataObject, KeyObject, ModelObject, RunEventObject, RunObject } from "@fettle/contract";
import type { ApiKeyRecord, BaseModel, DataReport, FileRecord, ModelRecord } from "../../app/ports.js";
import { predictedBytes, type Run, type RunEvent } from "../../domain/job.js";
import { toSeconds, toSecondsOrNull } from "../openai/present.js";

export function runObject(run: Run): RunObject {
  return {
    id: run.id,
    object: "run",
    created_at: toSeconds(run.createdAt),
    status: run.status,
    wanted: run.wanted,
    waiting: run.waiting,
    model: run.model,
    base_model: run.baseModel,
    teacher: run.request.teacher ?? null,
    family: run.family,
    task: run.task ?? run.request.task,
    method: run.method ?? run.request.method,
    training_file: run.trainingFile,
    validation_file: run.validationFile,
    hyperparameters: run.hyperparameters,
    labels: run.labels,
    estimate:
      run.estimate === null
        ? null
        : {
            seconds: run.estimate.seconds,
            memory_bytes: run.estimate.memoryBytes,
            tokens: run.estimate.tokens,
            basis: run.estimate.basis ?? null,
          },
    seed: run.seed,
    attempt: run.attempt,
    started_at: toSecondsOrNull(run.startedAt),
    finished_at: toSecondsOrNull(run.finishedAt),
    step: run.step,
    total_steps: run.totalSteps,
    eta_at: toSecondsOrNull(run.etaAt),
    trained_tokens: run.trainedTokens,
    memory:
      run.memory === undefined
        ? null
        : {
            predicted_bytes: predictedBytes(run),
            parts: run.memory.predicted,
            peak_bytes: run.memory.peakBytes,
          },
    fine_tuned_model: run.fineTunedModel,
    result_file: run.resultFile,
    error: run.error,
    suffix: run.request.suffix,
    metadata: run.metadata,
  };
}

export function runEventObject(event: RunEvent): RunEventObject {
  return {
    id: event.id,
    object: "run.event",
    run_id: event.runId,
    seq: event.seq,
    created_at: toSeconds(event.createdAt),
    level: event.level,
    type: event.type,
    message: event.message,
    data: event.data,
  };
}

export function dataObject(file: FileRecord): DataObject {
  return {
    id: file.id,
    object: "data",
    filename: file.filename,
    purpose: file.purpose,
    bytes: file.bytes,
    sha256: file.sha256,
    status: file.status,
    status_details: file.statusDetails,
    created_at: toSeconds(file.createdAt),
    expires_at: toSecondsOrNull(file.expiresAt),
    report: file.report === null ? null : reportObject(file.report),
  };
}

function reportObject(report: DataReport): NonNullable<DataObject["report"]> {
  return {
    format: report.format,
    kind: report.kind,
    num_rows: report.numRows,
    num_usable: report.numUsable,
    num_faults: report.numFaults,
    faults: report.faults.map((fault) => ({ ...fault })),
    notices: report.notices,
    labels: report.labels,
    rows_sha256: report.rowsSha256,
  };
}

export function baseObject(base: BaseModel): ModelObject {
  return {
    name: base.name,
    object: "fettle.model",
    kind: "base",
    family: base.family,
    task: null,
    method: null,
    base_model: null,
    run_id: null,
    labels: null,
    num_parameters: base.numParameters,
    context_length: base.contextLength,
    licence: base.licence,
    source: base.source,
    ready: base.path !== null,
    created_at: null,
  };
}

export function tunedObject(model: ModelRecord, base: BaseModel | undefined): ModelObject {
  return {
    name: model.name,
    object: "fettle.model",
    kind: "tuned",
    family: base?.family ?? null,
    task: model.task,
    method: model.method,
    base_model: model.baseModel,
    run_id: model.runId,
    labels: model.labels,
    num_parameters: base?.numParameters ?? null,
    context_length: base?.contextLength ?? null,
    licence: base?.licence ?? null,
    source: base?.source ?? null,
    ready: true,
    created_at: toSeconds(model.createdAt),
  };
}

export function keyObject(key: ApiKeyRecord): KeyObject {
  return {
    id: key.id,
    object: "key",
    name: key.name,
    role: key.role,
    hint: key.hint,
    created_at: toSeconds(key.createdAt),
    expires_at: toSecondsOrNull(key.expiresAt),
    revoked_at: toSecondsOrNull(key.revokedAt),
    last_used_at: toSecondsOrNull(key.lastUsedAt),
  };
}
