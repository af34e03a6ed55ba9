/** OpenAI's words for a fine-tuning job, turned into ours. */
import { type CreateJob, createJobSchema, type JobHyperparameters, methodSchema, taskSchema } from "@fettle/contract";
import type { Run, RunRequest } from "../domain/job.js";
import { AppError } from "../domain/error.js";
import type { AppDeps } from "./deps.js";
import { createRun, withoutUndefined } from "./jobs.js";

/** Creates the run an OpenAI client asked for. `reinforcement` is refused before anything is looked up. */
export async function createJob(
  deps: Pick<AppDeps, "store" | "catalogue" | "blobs" | "exporter" | "clock" | "ids">,
  input: { projectId: string; request: CreateJob },
): Promise<Run> {
  const { request } = input;
  refuseUnbuiltMethods(request);
  const { task, method, warnings } = taskAndMethod(request);
  const { place, given } = methodOf(request);
  return createRun(deps, {
    projectId: input.projectId,
    model: request.model,
    trainingFile: request.training_file,
    validationFile: request.validation_file ?? null,
    seed: request.seed ?? null,
    metadata: request.metadata ?? null,
    request: {
      suffix: request.suffix ?? null,
      task,
      method,
      ...(request.method?.supervised?.teacher !== undefined && { teacher: request.method.supervised.teacher }),
      hyperparameters: { ...ownNames(request.hyperparameters ?? {}), ...ownNames(given) },
      integrations: request.integrations ?? null,
    },
    warnings: [...warnings, ...unknownFields(request), ...unusedIntegrations(request)],
    pathOf: (name) =>
      Object.hasOwn(given, name) ? `method.${place}.hyperparameters.${name}` : `hyperparameters.${name}`,
  });
}

function methodOf({ method }: CreateJob): { place: "supervised" | "dpo"; given: JobHyperparameters } {
  const place = method?.type === "dpo" ? "dpo" : "supervised";
  return { place, given: method?.[place]?.hyperparameters ?? {} };
}

function refuseUnbuiltMethods({ method }: CreateJob): void {
  if (method?.type === "reinforcement") {
    throw new AppError(
      "unsupported_method",
      `method.type is "${method.type}": only "supervised" and "dpo" are built. Use method.type "supervised", or "dpo" with preferences.`,
      { param: "method.type" },
    );
  }
  const type = method?.type ?? "supervised";
  const strays = Object.keys(method ?? {}).filter((key) => key !== "type" && key !== type);
  const [stray] = strays;
  if (stray !== undefined) {
    throw new AppError(
      "unknown_field",
      `method.${stray} does not belong to the method "${type}": expected only \`type\` and \`${type}\`. Leave it out.`,
      { param: `method.${stray}` },
    );
  }
}

/** From `method`, else from `metadata`, for clients that can send nothing but OpenAI's fields. */
function taskAndMethod(request: CreateJob): Pick<RunRequest, "task" | "method"> & { warnings: string[] } {
  const supervised = request.method?.supervised;
  const warnings: string[] = [];
  const fromMetadata = <T extends string>(key: string, known: readonly T[]): T | null => {
    const value = request.metadata?.[key];
    const match = known.find((name) => name === value) ?? null;
    if (value !== undefined && match === null)
      warnings.push(`metadata.${key} is "${value}": not one of ${known.join(", ")}, so it was kept as a note only.`);
    return match;
  };
  const task = fromMetadata("task", taskSchema.options);
  const method = fromMetadata("method", methodSchema.options);
  if (request.method?.type === "dpo")
    return { task: "preference", method: request.method.dpo?.method ?? method, warnings };
  return { task: supervised?.task ?? task, method: supervised?.method ?? method, warnings };
}

/** "auto" and absent mean the same: Fettle chooses. */
export function ownNames(given: JobHyperparameters): RunRequest["hyperparameters"] {
  const { n_epochs, batch_size, learning_rate_multiplier, ...own } = given;
  const named = {
    num_train_epochs: n_epochs,
    per_device_train_batch_size: batch_size,
    learning_rate_multiplier,
    ...withoutUndefined(own),
  };
  const set = Object.entries(named).filter(([, value]) => value !== "auto" && value !== undefined);
  return Object.fromEntries(set) as RunRequest["hyperparameters"];
}

const knownFields = new Set(Object.keys(createJobSchema.shape));

function unknownFields(request: CreateJob): string[] {
  const names = Object.keys(request).filter((key) => !knownFields.has(key));
  return names.slice(0, 20).map((name) => `The field "${name.slice(0, 64)}" is not known here and was ignored.`);
}

function unusedIntegrations(request: CreateJob): string[] {
  return (request.integrations ?? []).map(
    (integration) =>
      `The integration "${integration.type}" is not built: nothing is sent there. Metrics are in the events and in the result file.`,
  );
}
