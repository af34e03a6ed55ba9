/** The teacher of a run: a tuned model of the same project, whose answers are learnt beside the labels. */
import type { Task } from "@fettle/contract";
import { AppError } from "../domain/error.js";
import type { Run, RunRequest } from "../domain/job.js";
import type { DomainRefusal } from "../domain/refusal.js";
import { teacherRefusal } from "../domain/teacher.js";
import { artefactFolder, type ReadyModelDeps, type ResolvedModel, resolveModel, targetOf } from "./models.js";
import type { ModelRecord, TeacherSpec } from "./ports.js";

interface Asked {
  projectId: string;
  request: Pick<RunRequest, "teacher" | "task">;
}

export interface Teacher {
  model: ResolvedModel;
  /** Why it cannot teach a run of this task and these labels; null when it can. */
  refusal(task: Task | null, labels: readonly string[] | null): DomainRefusal | null;
}

/** Null when none was asked for. Throws AppError, with the param `teacher`, when there is no such model. */
export async function teacherOf(
  deps: Pick<ReadyModelDeps, "store" | "catalogue" | "blobs">,
  { projectId, request }: Asked,
): Promise<Teacher | null> {
  const name = request.teacher;
  if (name === undefined) return null;
  const model = await asTeacher(() => resolveModel(deps, { projectId, name }));
  const candidates: ModelRecord[] = await deps.store.models.list(projectId);
  const { tuned } = model;
  const facts = { teacher: name, tunedFor: tuned?.task ?? null, knows: tuned?.labels ?? null, candidates };
  return { model, refusal: (task, labels) => teacherRefusal({ ...facts, task, labels }) };
}

/** What can be told before a run is made. A checkpoint that teaches is written as a model, and stays. */
export async function checkTeacher(deps: ReadyModelDeps, asked: Asked): Promise<void> {
  const teacher = await teacherOf(deps, asked);
  const refusal = teacher?.refusal(asked.request.task, null) ?? null;
  if (refusal !== null) throw new AppError(refusal.code, refusal.message, { param: refusal.param });
  const tuned = teacher?.model.tuned ?? null;
  if (teacher !== null && tuned !== null) await asTeacher(() => artefactFolder(deps, teacher.model.name, tuned));
}

/** For the trainer; nothing when the run has no teacher. */
export async function teacherSpec(deps: ReadyModelDeps, run: Run): Promise<{ teacher?: TeacherSpec }> {
  const teacher = await teacherOf(deps, run);
  if (teacher === null) return {};
  const { basePath, adapterPath, family } = await asTeacher(() => targetOf(deps, teacher.model));
  return { teacher: { name: teacher.model.name, family, path: basePath, adapter_path: adapterPath } };
}

async function asTeacher<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    if (!(cause instanceof AppError) || cause.param !== "model") throw cause;
    throw new AppError(cause.code, cause.message, { param: "teacher", cause });
  }
}
