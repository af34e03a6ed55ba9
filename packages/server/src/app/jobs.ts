/** Runs: starting one and steering it. The OpenAI surface calls them fine-tuning jobs; both surfaces come here. */
import type { CreateRun } from "@fettle/contract";
import { type Run, type RunAction, type RunEvent, type RunRequest, type Split, transition } from "../domain/job.js";
import { shapeConflict } from "../domain/adapter-shape.js";
import { AppError } from "../domain/error.js";
import { adapterOf } from "./adapter-of.js";
import type { AppDeps } from "./deps.js";
import { noSuchFile } from "./files.js";
import { artefactFolder, type ResolvedModel, resolveModel } from "./models.js";
import { checkTeacher } from "./teacher.js";
import type { CheckpointRecord, FileRecord, NewRunEvent, Page, PageRequest } from "./ports.js";

export interface NewRun {
  /** Given by who must find it again after a crash: a run of this id that is there already is left as it is. */
  id?: string;
  split?: Split;
  projectId: string;
  model: string;
  trainingFile: string;
  validationFile: string | null;
  seed: number | null;
  metadata: Record<string, string> | null;
  request: RunRequest;
  /** Told as warning events of the run: what was accepted but has no effect. */
  warnings: string[];
  /** Where the request has a hyperparameter, for refusals. */
  pathOf(name: string): string;
}

export type RunDeps = Pick<AppDeps, "store" | "catalogue" | "blobs" | "exporter" | "clock" | "ids">;

/** Checks in this order: model, an adapter's shape, teacher, files; ranges were checked at the door. The rest (rows, memory) is checked while `validating_files`. */
export async function createRun(deps: RunDeps, input: NewRun): Promise<Run> {
  const model = await checkStart(deps, input);
  const now = deps.clock.now();
  const run: Run = {
    id: input.id ?? deps.ids.make("ftjob-"),
    projectId: input.projectId,
    createdAt: now,
    status: "validating_files",
    wanted: null,
    model: input.model,
    baseModel: model.base.name,
    family: model.base.family,
    trainingFile: input.trainingFile,
    validationFile: input.validationFile,
    seed: input.seed ?? randomSeed(deps),
    ...(input.split !== undefined && { split: input.split }),
    metadata: input.metadata,
    request: input.request,
    task: null,
    method: null,
    hyperparameters: null,
    labels: null,
    estimate: null,
    attempt: 0,
    startedAt: null,
    finishedAt: null,
    step: 0,
    totalSteps: null,
    etaAt: null,
    trainedTokens: null,
    fineTunedModel: null,
    resultFile: null,
    error: null,
    waiting: null,
  };
  const events = [
    event(deps, { key: "created", message: `Created fine-tuning job: ${run.id}` }),
    ...input.warnings.map((message, index) =>
      event(deps, { key: `created:warning:${index}`, level: "warn" as const, message }),
    ),
  ];
  const outcome = await deps.store.runs.create(run, events);
  if (outcome === "model_gone") {
    throw new AppError(
      "model_not_found",
      "A model of this run was deleted while the run was being created. GET /v1/models lists those there are.",
      { param: "model" },
    );
  }
  if (outcome === "file_gone") {
    throw new AppError(
      "file_not_usable",
      "A file of this run was deleted while the run was being created. Upload it again.",
      { param: "training_file" },
    );
  }
  return run;
}

/** What can be told before a run is made. */
export async function checkStart(
  deps: RunDeps,
  input: Pick<NewRun, "projectId" | "model" | "trainingFile" | "validationFile" | "request" | "pathOf">,
): Promise<ResolvedModel> {
  const model = await resolveModel(deps, { projectId: input.projectId, name: input.model });
  // A checkpoint to begin with must outlast the pruning of its own run.
  if (model.tuned !== null) await artefactFolder(deps, model.name, model.tuned);
  await keepsShape(deps, input, model);
  await checkTeacher(deps, input);
  await usableFile(deps, { projectId: input.projectId, fileId: input.trainingFile, param: "training_file" });
  if (input.validationFile !== null) {
    await usableFile(deps, { projectId: input.projectId, fileId: input.validationFile, param: "validation_file" });
  }
  return model;
}

/** The richer request of our own API. */
export async function createOwnRun(deps: RunDeps, input: { projectId: string; request: CreateRun }): Promise<Run> {
  return createRun(deps, ownRun(input));
}

/** A request of our own API in the words of use cases. */
export function ownRun({ projectId, request }: { projectId: string; request: CreateRun }): NewRun {
  return {
    projectId,
    model: request.model,
    trainingFile: request.training_file,
    validationFile: request.validation_file ?? null,
    seed: request.seed ?? null,
    metadata: request.metadata ?? null,
    request: {
      suffix: request.suffix ?? null,
      task: request.task ?? null,
      method: request.method ?? null,
      ...(request.teacher !== undefined && request.teacher !== null && { teacher: request.teacher }),
      hyperparameters: withoutUndefined(request.hyperparameters ?? {}),
      integrations: null,
    },
    warnings: [],
    pathOf: (name) => `hyperparameters.${name}`,
  };
}

/** A run that goes on from an adapter cannot ask for another rank, alpha or other layers. */
async function keepsShape(
  deps: RunDeps,
  input: Pick<NewRun, "projectId" | "request" | "pathOf">,
  model: ResolvedModel,
): Promise<void> {
  const adapter = await adapterOf(deps, { projectId: input.projectId, model });
  const conflict = adapter && shapeConflict(adapter, input.request.hyperparameters);
  if (conflict !== null)
    throw new AppError("value_out_of_range", conflict.message, { param: input.pathOf(conflict.name) });
}

export function withoutUndefined<T extends object>(values: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)) as {
    [K in keyof T]: Exclude<T[K], undefined>;
  };
}

export const randomSeed = (deps: Pick<AppDeps, "ids">): number =>
  Buffer.from(deps.ids.bytes(4)).readUInt32LE(0) & 0x7fffffff;

export function event(
  deps: Pick<AppDeps, "clock" | "ids">,
  input: { key: string; message: string; level?: NewRunEvent["level"] },
): NewRunEvent {
  return {
    id: deps.ids.make("ftevent-"),
    key: input.key,
    createdAt: deps.clock.now(),
    level: input.level ?? "info",
    type: "message",
    message: input.message,
    data: null,
  };
}

async function usableFile(
  deps: Pick<AppDeps, "store">,
  input: { projectId: string; fileId: string; param: string },
): Promise<FileRecord> {
  const { fileId, param } = input;
  const file = await deps.store.files.get(input.projectId, fileId);
  if (file === null) throw noSuchFile(fileId, param);
  if (file.deletedAt !== null)
    throw new AppError("file_not_usable", `File "${fileId}" was deleted. Upload it again.`, { param });
  if (file.purpose !== "fine-tune") {
    throw new AppError(
      "file_not_usable",
      `File "${fileId}" has the purpose "${file.purpose}": expected "fine-tune". Upload it again with purpose "fine-tune".`,
      { param },
    );
  }
  if (file.status === "error") {
    throw new AppError(
      "file_not_usable",
      `File "${fileId}" cannot be trained on: ${file.statusDetails ?? "it could not be read"}`,
      {
        param,
        details: { faults: file.report?.faults ?? [] },
      },
    );
  }
  return file;
}

interface RunId {
  projectId: string;
  runId: string;
}

export async function getRun(deps: Pick<AppDeps, "store">, { projectId, runId }: RunId): Promise<Run> {
  const run = await deps.store.runs.get(projectId, runId);
  if (run === null) throw noSuchRun(runId);
  return run;
}

const noSuchRun = (runId: string): AppError =>
  new AppError(
    "not_found",
    `No fine-tuning job "${runId}" in this project. List the jobs to see their ids: GET /v1/fine_tuning/jobs.`,
    { param: "fine_tuning_job_id" },
  );

export async function listRuns(
  deps: Pick<AppDeps, "store">,
  input: PageRequest & { projectId: string; metadata?: Record<string, string> | undefined },
): Promise<Page<Run>> {
  const { projectId, ...page } = input;
  return deps.store.runs.list(projectId, page);
}

export type Steering = "cancel" | "pause" | "resume";

/** Throws `conflict` with the state and what it allows. A running run ends at its next step; the answer shows it still running. */
export async function steerRun(
  deps: Pick<AppDeps, "store" | "clock" | "ids">,
  input: RunId & { to: Steering },
): Promise<Run> {
  await getRun(deps, input);
  let refusal: string | null = null;
  const run = await deps.store.runs.update(input.runId, (current) => {
    const next = transition(current, steeringAction(deps, input.to));
    refusal = next.ok ? null : next.reason;
    if (!next.ok) return null;
    const said = { cancel: "Cancel requested.", pause: "Pause requested.", resume: "Resume requested." }[input.to];
    return { run: next.run, events: [event(deps, { key: `${input.to}:${deps.ids.make("")}`, message: said })] };
  });
  if (refusal !== null) throw new AppError("conflict", refusal, { param: "fine_tuning_job_id" });
  if (run === null) throw noSuchRun(input.runId);
  return run;
}

function steeringAction(deps: Pick<AppDeps, "clock">, to: Steering): RunAction {
  if (to === "cancel") return { type: "cancel_requested", at: deps.clock.now() };
  return { type: to === "pause" ? "pause_requested" : "resume_requested" };
}

/** Newest first, as OpenAI's clients expect. */
export async function listRunEvents(deps: Pick<AppDeps, "store">, input: RunId & PageRequest): Promise<Page<RunEvent>> {
  await getRun(deps, input);
  return deps.store.runs.events(input.projectId, input.runId, {
    after: input.after,
    limit: input.limit,
    order: "desc",
  });
}

export async function listCheckpoints(
  deps: Pick<AppDeps, "store">,
  input: RunId & PageRequest,
): Promise<Page<CheckpointRecord>> {
  await getRun(deps, input);
  return deps.store.runs.checkpoints(input.projectId, input.runId, {
    after: input.after,
    limit: input.limit,
    order: "desc",
  });
}
