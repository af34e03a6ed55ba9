/** A run in `validating_files`: are its files, model, method and memory fit for each other, and what is left to choose? */
import { AppError } from "../domain/error.js";
import { type Run, type RunAction, transition } from "../domain/job.js";
import { decideRun, type Decision } from "./decide-run.js";
import { adapterOf } from "./adapter-of.js";
import type { AppDeps } from "./deps.js";
import { surveyRows } from "./held-out.js";
import { type ResolvedModel, resolveModel } from "./models.js";
import type { FileRecord, NewRunEvent } from "./ports.js";
import { minTrainingRows } from "./process-file.js";
import { teacherOf } from "./teacher.js";
import { trainedHere } from "./trained-here.js";
import type { DomainRefusal } from "../domain/refusal.js";

export interface Machine {
  /** What training may take. */
  memoryBytes: number;
  cores: number;
  /** Processor and threads: what was timed on another says nothing here. */
  name: string;
  /** Floating point operations a second of a product of matrices on all cores; null: not measured yet. */
  product(): number | null;
  /** Why no base can be kept in 4 bits; null: one can. Takes seconds, so it is asked only where it matters. */
  fourBitsLack(): Promise<string | null>;
}

export interface ValidateRunDeps extends Pick<AppDeps, "store" | "blobs" | "catalogue" | "clock" | "ids"> {
  machine: Machine;
}

/**
 * Moves the run on to `queued`, or to `failed` with the reason. "waiting": a file is still being read, call again
 * later. "gone": the run is not in `validating_files` any more. Throws only what another try may mend.
 */
export async function validateRun(deps: ValidateRunDeps, run: Run): Promise<"queued" | "failed" | "waiting" | "gone"> {
  if (run.status !== "validating_files") return "gone";
  const training = await fileOf(deps, run, "training_file");
  const validation = run.validationFile === null ? null : await fileOf(deps, run, "validation_file");
  if (training?.status === "uploaded" || validation?.status === "uploaded") return "waiting";
  const refusal =
    fileRefusal(training, { run, param: "training_file" }) ??
    (run.validationFile === null ? null : fileRefusal(validation, { run, param: "validation_file" }));
  if (refusal !== null || training === null)
    return refuse(deps, run, {
      refusal: refusal ?? { code: "file_not_usable", message: "The training file is gone.", param: "training_file" },
      file: training,
    });
  const decision = await decide(deps, run, { training, validation });
  if (!decision.ok) return refuse(deps, run, { refusal: decision.refusal, file: null });
  const { action, notes } = decision.value;
  const events = notes.map(({ level, message, data }, index) =>
    event(deps, { key: `validated:${index}`, level, message, data: data ?? null }),
  );
  events.push(
    event(deps, {
      key: "validated",
      level: "info",
      message: "Files validated, moving job to queued state",
      data: null,
    }),
  );
  return (await move(deps, run, { action, events })) ? "queued" : "gone";
}

async function decide(
  deps: ValidateRunDeps,
  run: Run,
  files: { training: FileRecord; validation: FileRecord | null },
): Promise<Decision> {
  try {
    const model = await resolveModel(deps, { projectId: run.projectId, name: run.model });
    const teacher = await teacherOf(deps, run);
    const facts = await surveyRows(deps.blobs, run);
    const known = await deps.catalogue.list();
    return decideRun({
      run,
      model,
      teacher,
      adapter: await adapterOf(deps, { projectId: run.projectId, model }),
      facts,
      machine: { ...deps.machine, product: deps.machine.product(), fourBitsLack: await fourBitsLack(deps, run, model) },
      trained: await trainedHere(deps.store, { projectId: run.projectId, machine: deps.machine.name, known }),
      known,
      training: files.training.report,
      validation: files.validation?.report ?? null,
    });
  } catch (error) {
    // A model or file that went away is the user's to mend; a full disk or a lost database is not: the next try may do.
    if (error instanceof AppError && error.status < 500)
      return { ok: false, refusal: { code: error.code, message: error.message, param: error.param } };
    throw error;
  }
}

const fourBitsLack = async (
  { machine }: ValidateRunDeps,
  run: Run,
  { tuned }: ResolvedModel,
): Promise<string | null> => ([run.request.method, tuned?.method].includes("qlora") ? machine.fourBitsLack() : null);

const fileOf = (
  deps: Pick<AppDeps, "store">,
  run: Run,
  which: "training_file" | "validation_file",
): Promise<FileRecord | null> =>
  deps.store.files.get(run.projectId, (which === "training_file" ? run.trainingFile : run.validationFile) ?? "");

function fileRefusal(
  file: FileRecord | null,
  { run, param }: { run: Run; param: "training_file" | "validation_file" },
): DomainRefusal | null {
  const id = param === "training_file" ? run.trainingFile : run.validationFile;
  const name = param === "training_file" ? "training file" : "validation file";
  if (file === null || file.deletedAt !== null)
    return {
      code: "file_not_usable",
      param,
      message: `The ${name} ${id} was deleted. Upload it again and start a new run.`,
    };
  if (file.status === "error")
    return {
      code: "invalid_training_file",
      param,
      message: `The ${name} ${id} cannot be used: ${file.statusDetails ?? "it could not be read."}`,
    };
  if (file.report === null)
    return {
      code: "file_not_usable",
      param,
      message: `The ${name} ${id} has the purpose "${file.purpose}": expected "fine-tune". Upload it again with purpose "fine-tune".`,
    };
  const { numUsable } = file.report;
  if (param === "training_file" && numUsable < minTrainingRows) {
    const rows = numUsable === 1 ? "1 row" : `${numUsable} rows`;
    return {
      code: "too_few_rows",
      param,
      message: `The ${name} ${id} has ${rows}: expected at least ${minTrainingRows}. Add rows; 50 to 100 is where tuning begins to show.`,
    };
  }
  return null;
}

async function refuse(
  deps: ValidateRunDeps,
  run: Run,
  { refusal, file }: { refusal: DomainRefusal; file: FileRecord | null },
): Promise<"failed" | "gone"> {
  // The split may be as large as the file, and nothing will read it.
  await deps.blobs.delete(`runs/${run.id}/rows`);
  const faults = file?.report?.faults ?? [];
  const data =
    faults.length === 0 ? null : { faults: faults.slice(0, 20), num_faults: file?.report?.numFaults ?? faults.length };
  const said = event(deps, { key: "refused", level: "error", message: `${refusal.code}: ${refusal.message}`, data });
  const moved = await move(deps, run, {
    action: { type: "refused", error: refusal, at: deps.clock.now() },
    events: [said],
  });
  return moved ? "failed" : "gone";
}

async function move(
  deps: ValidateRunDeps,
  run: Run,
  { action, events }: { action: RunAction; events: NewRunEvent[] },
): Promise<boolean> {
  let moved = false;
  await deps.store.runs.update(run.id, (current) => {
    if (current.status !== "validating_files") return null;
    const next = transition(current, action);
    moved = next.ok;
    return next.ok ? { run: next.run, events } : null;
  });
  return moved;
}

function event(
  deps: Pick<AppDeps, "clock" | "ids">,
  said: Pick<NewRunEvent, "key" | "level" | "message" | "data">,
): NewRunEvent {
  return { id: deps.ids.make("ftevent-"), createdAt: deps.clock.now(), type: "message", ...said };
}
