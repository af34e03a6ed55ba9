export type { ClientOptions } from "./connection.js";
export { FettleError, type FettleErrorFacts } from "./error.js";
export { Chat, type ChatRequest, Fettle, Keys } from "./fettle.js";
export { Data, Files, type FileSource } from "./files.js";
export { endedStatuses, hasEnded, type RunNews, Runs } from "./runs.js";
export { type CreateSweepRequest, Sweeps } from "./sweeps.js";
export { type CreateCrossValidationRequest, CrossValidations } from "./cross-validations.js";
