/**
 * The ports: what the use cases need from the world. Adapters implement them; only main.ts knows which.
 *
 * Words: a *run* is one training (`ftjob-…` on the OpenAI surface). An *attempt* is one trainer process of a
 * run. A *lease* says which server watches a run; its *token* grows with every new owner, and a write that
 * carries an older token is refused (`StaleLease`).
 *
 * Times in records, runs and events (`createdAt`, `expiresAt`, `at` …) are milliseconds since 1970; http/ answers in seconds.
 */
import type {
  CanonicalRow,
  ExportFormat,
  ExportQuantize,
  Fault,
  Prediction,
  RowKind,
  TrainerEvent,
  TrainSpec,
} from "@fettle/contract";
import type { Run, RunEvent, RunStatus } from "../domain/job.js";
import type { Values } from "../domain/search-space.js";
import type { Evaluation, Sweep } from "../domain/sweep.js";
import type { Question } from "../domain/sweep-question.js";

export interface Clock {
  /** Milliseconds since 1970. */
  now(): number;
  /** Calls `fn` every `ms`; returns the function that stops it. */
  every(ms: number, fn: () => void): () => void;
  sleep(ms: number): Promise<void>;
}

export interface Ids {
  /** A fresh unguessable id such as `ftjob-…`: prefix + 24 base62 characters. */
  make(prefix: string): string;
  /** `n` cryptographically random bytes. */
  bytes(n: number): Uint8Array;
}

export interface Log {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

// ---------------------------------------------------------------- records

export interface ApiKeyRecord {
  id: string;
  projectId: string;
  name: string;
  role: "admin" | "member";
  hint: string;
  createdAt: number;
  expiresAt: number | null;
  revokedAt: number | null;
  lastUsedAt: number | null;
}

export interface FileRecord {
  id: string;
  projectId: string;
  filename: string;
  purpose: string;
  bytes: number;
  sha256: string;
  status: "uploaded" | "processed" | "error";
  statusDetails: string | null;
  createdAt: number;
  expiresAt: number | null;
  /** What reading it found; null until processed or when the purpose is not training. */
  report: DataReport | null;
  deletedAt: number | null;
}

/** What one pass over a data file found. `faults` holds the first 100; the rest is in the blob `<file>/faults.jsonl`. */
export interface DataReport {
  format: "jsonl" | "json-array" | "csv";
  kind: RowKind | null;
  numRows: number;
  numUsable: number;
  numFaults: number;
  faults: Fault[];
  /** What was accepted but worth telling: BOM, UTF-16, CRLF, array instead of lines, blank lines. */
  notices: string[];
  labels: Record<string, number> | null;
  /** sha256 of the canonical rows (blob `<file>/rows.jsonl`). */
  rowsSha256: string | null;
}

/** Takes what reading a file brings up. The reader waits for each promise, so that a slow disk slows the reading. */
export interface RowSink {
  row(row: CanonicalRow): Promise<void> | undefined;
  fault(fault: Fault): Promise<void> | undefined;
}

/** Reads a data file of any known format once, in memory that does not grow with the file. */
export interface DataReader {
  /** `filename` helps to tell the format. Faults of rows go to the sink, they do not throw. */
  read(
    source: AsyncIterable<Uint8Array>,
    filename: string,
    sink: RowSink,
  ): Promise<Omit<DataReport, "faults" | "rowsSha256">>;
}

export interface UploadRecord {
  id: string;
  projectId: string;
  filename: string;
  purpose: string;
  bytes: number;
  mimeType: string;
  status: "pending" | "completed" | "cancelled" | "expired";
  createdAt: number;
  expiresAt: number;
  fileId: string | null;
}

export interface UploadPartRecord {
  id: string;
  uploadId: string;
  bytes: number;
  createdAt: number;
}

export interface CheckpointRecord {
  id: string;
  runId: string;
  step: number;
  modelName: string;
  path: string;
  metrics: Record<string, number>;
  createdAt: number;
}

/** A tuned model that can be asked for by name. Base models come from the catalogue, not from here. */
export interface ModelRecord {
  name: string;
  projectId: string;
  runId: string;
  baseModel: string;
  task: TrainSpec["task"];
  method: TrainSpec["method"];
  /** Blob key of the artefact folder. */
  artefact: string;
  artefactSha256: string;
  labels: string[] | null;
  createdAt: number;
}

// ---------------------------------------------------------------- store

export interface Page<T> {
  data: T[];
  hasMore: boolean;
}
export interface PageRequest {
  after?: string | undefined;
  limit: number;
  order?: "asc" | "desc" | undefined;
}

export interface KeyStore {
  create(key: ApiKeyRecord, secretHash: string): Promise<void>;
  /** By SHA-256 of the secret; the caller checks expiry and revocation. */
  findByHash(secretHash: string): Promise<ApiKeyRecord | null>;
  list(projectId: string): Promise<ApiKeyRecord[]>;
  revoke(projectId: string, id: string, at: number): Promise<boolean>;
  touch(id: string, at: number): Promise<void>;
  count(): Promise<number>;
}

export interface FileStore {
  create(file: FileRecord): Promise<void>;
  get(projectId: string, id: string): Promise<FileRecord | null>;
  list(projectId: string, page: PageRequest & { purpose?: string | undefined }): Promise<Page<FileRecord>>;
  setProcessed(
    projectId: string,
    id: string,
    outcome: { status: "processed" | "error"; statusDetails: string | null; report: DataReport | null },
  ): Promise<void>;
  /** Refuses ("in_use") while an unfinished run reads the file. One transaction with the check. */
  delete(projectId: string, id: string, at: number): Promise<"deleted" | "not_found" | "in_use">;
  listUnprocessed(): Promise<FileRecord[]>;
  listExpired(now: number): Promise<FileRecord[]>;
}

export interface UploadStore {
  create(upload: UploadRecord): Promise<void>;
  get(projectId: string, id: string): Promise<UploadRecord | null>;
  addPart(projectId: string, part: UploadPartRecord): Promise<void>;
  parts(projectId: string, uploadId: string): Promise<UploadPartRecord[]>;
  setStatus(
    projectId: string,
    id: string,
    end: { status: UploadRecord["status"]; fileId: string | null },
  ): Promise<void>;
  listExpired(now: number): Promise<UploadRecord[]>;
}

/** Identifies the writer of a leased run. */
export interface Lease {
  runId: string;
  owner: string;
  token: number;
}
export class StaleLease extends Error {}

export interface RunStore {
  /**
   * Inserts the run with its first event, in one transaction; refuses when a file or a tuned model of it is deleted meanwhile.
   * "exists": a run of this id is there already, and stays as it is.
   */
  create(run: Run, events: NewRunEvent[]): Promise<"created" | "file_gone" | "model_gone" | "exists">;
  get(projectId: string, id: string): Promise<Run | null>;
  list(projectId: string, page: PageRequest & { metadata?: Record<string, string> | undefined }): Promise<Page<Run>>;
  /** All runs of all projects with one of these statuses, oldest first (for the dispatcher). */
  withStatus(statuses: readonly RunStatus[]): Promise<Run[]>;
  /** Those of these ids that there are, with their evaluations in the order of their steps. */
  evaluated(ids: readonly string[]): Promise<Map<string, { run: Run; evaluations: Evaluation[] }>>;
  /** The runs of a project that succeeded, the newest first. */
  succeeded(projectId: string, limit: number): Promise<Run[]>;
  /**
   * The one way a run changes: reads it FOR UPDATE, applies `change` (pure), writes run and events in one
   * transaction. `lease` given: refused with StaleLease unless it is still the owner. `change` returning null: nothing is written.
   */
  update(
    id: string,
    change: (run: Run) => { run: Run; events: NewRunEvent[] } | null,
    lease?: Lease,
  ): Promise<Run | null>;
  /** Appends trainer events exactly once: known `(runId, key)` are skipped. With `change`, in the same transaction. */
  ingest(lease: Lease, input: Ingest): Promise<void>;
  /** How far the run's events file has been ingested, in bytes. */
  offset(id: string): Promise<number>;
  /**
   * Takes the lease when it is free, expired, already ours, or held by an owner that `isDead` says will not write again;
   * bumps the token unless already ours. Null: another owner has it.
   */
  acquire(
    id: string,
    owner: string,
    terms: { ttlMs: number; isDead?: (owner: string) => boolean },
  ): Promise<Lease | null>;
  renew(lease: Lease, ttlMs: number): Promise<boolean>;
  release(lease: Lease): Promise<void>;
  events(
    projectId: string,
    id: string,
    page: { after?: string | undefined; sinceSeq?: number | undefined; limit: number; order: "asc" | "desc" },
  ): Promise<Page<RunEvent>>;
  checkpoints(projectId: string, id: string, page: PageRequest): Promise<Page<CheckpointRecord>>;
  /** Calls `fn(runId)` after each committed change or event of any run, from any process (LISTEN/NOTIFY). Returns the stop function. */
  onChange(fn: (runId: string) => void): () => void;
}

/** What one reading of the events file brings into the store. */
export interface Ingest {
  events: NewRunEvent[];
  /** Where the reading ended: the next one goes on there. */
  offset: number;
  checkpoints: CheckpointRecord[];
  /** Steps whose checkpoints the trainer has pruned from the disk. */
  goneCheckpoints?: number[];
  model?: ModelRecord;
  file?: FileRecord;
  change?: (run: Run) => Run;
}

/** `key` makes ingestion idempotent: `attempt:1:seq:17`, `step:120`, `checkpoint:100`. */
export interface NewRunEvent {
  id: string;
  key: string;
  createdAt: number;
  level: "info" | "warn" | "error";
  type: "message" | "metrics";
  message: string;
  data: Record<string, unknown> | null;
}

/** Both are kept alike; see Sweep. */
export type SweepKind = "sweep" | "cross_validation";

export interface SweepStore {
  create(sweep: Sweep): Promise<void>;
  get(projectId: string, id: string): Promise<Sweep | null>;
  list(projectId: string, page: PageRequest & { kind: SweepKind }): Promise<Page<Sweep>>;
  /** Of all projects, those that have not ended, oldest first. */
  unended(): Promise<Sweep[]>;
  /** Reads it FOR UPDATE, applies `change` (pure) and writes; null: nothing is written, and null is the answer. */
  update(id: string, change: (sweep: Sweep) => Sweep | null): Promise<Sweep | null>;
}

export interface ModelStore {
  get(projectId: string, name: string): Promise<ModelRecord | null>;
  list(projectId: string): Promise<ModelRecord[]>;
  /** Unless a run or a sweep that has not ended begins with it or learns from it: then its id, and the model stays. */
  delete(projectId: string, name: string): Promise<{ needed_by: string | null }>;
  checkpoint(projectId: string, modelName: string): Promise<CheckpointRecord | null>;
}

export interface IdempotencyStore {
  /**
   * Claims `key` for this request. "new": go on, then `finish`. "replay": here is the stored answer.
   * "mismatch": same key, other body. "busy": the first request has not finished.
   */
  begin(
    projectId: string,
    key: string,
    request: { bodyHash: string; now: number },
  ): Promise<
    { state: "new" } | { state: "replay"; status: number; body: string } | { state: "mismatch" } | { state: "busy" }
  >;
  finish(projectId: string, key: string, answer: { status: number; body: string }): Promise<void>;
  /** The request failed before any effect: the key is free again. */
  forget(projectId: string, key: string): Promise<void>;
  expire(before: number): Promise<number>;
}

export interface Store {
  keys: KeyStore;
  files: FileStore;
  uploads: UploadStore;
  runs: RunStore;
  sweeps: SweepStore;
  models: ModelStore;
  idempotency: IdempotencyStore;
  /** True when the database answers. */
  ping(): Promise<boolean>;
  close(): Promise<void>;
}

// ---------------------------------------------------------------- blobs, runner, inference

/** Keys are made by us, never from user text: `files/<fileId>/original`, `runs/<runId>/…`. */
export interface Blobs {
  /** Streams to a temporary name, fsyncs, renames. `maxBytes` is enforced while streaming. */
  put(
    key: string,
    body: AsyncIterable<Uint8Array>,
    options?: { maxBytes?: number },
  ): Promise<{ bytes: number; sha256: string }>;
  get(key: string, range?: { start: number; end?: number }): Promise<AsyncIterable<Uint8Array> | null>;
  size(key: string): Promise<number | null>;
  delete(prefix: string): Promise<void>;
  /** All blobs below `folder`, by name relative to it, sorted; none when there is no such folder. */
  list(folder: string): Promise<{ name: string; bytes: number }[]>;
  /** Where the blob (or folder) is on this machine's disk; trainers and model processes read from there. */
  localPath(key: string): string;
}

export interface RunnerState {
  alive: boolean;
  pid: number | null;
  /** Null while alive or when unknown (the process was adopted and its end was not seen). */
  exitCode: number | null;
  signal: string | null;
}

/** Starts and watches trainer processes. They outlive this server: state is in the run's folder, not in memory. */
export interface Runner {
  /** Writes spec.json, starts the trainer detached in its own session. Refuses when one is already alive for this run. */
  start(spec: TrainSpec): Promise<{ pid: number }>;
  state(runId: string): Promise<RunnerState>;
  /** Complete lines of events.jsonl from byte `offset`; `offset` of the answer is where to go on. */
  read(
    runId: string,
    offset: number,
  ): Promise<{ events: TrainerEvent[]; offset: number; lastSignOfLife: number | null }>;
  /** Asks for a checkpoint and an orderly end (SIGTERM). */
  stop(runId: string): Promise<void>;
  kill(runId: string): Promise<void>;
  /** The last `maxBytes` of the trainer's stderr. */
  stderr(runId: string, maxBytes: number): Promise<string>;
}

export interface InferenceTarget {
  /** Base model folder; one process each. */
  basePath: string;
  /** Folder of the PEFT adapter, or null for the base itself. A full tune is its own base. */
  adapterPath: string | null;
  family: TrainSpec["base_model"]["family"];
  /** `classify`: the adapter or folder holds a classification head. */
  task: TrainSpec["task"] | "embed";
}

export interface GenerateRequest {
  prompt: { messages: unknown[]; tools?: unknown[] } | { text: string } | { tokens: number[] };
  maxTokens: number | null;
  temperature: number;
  topP: number;
  stop: string[];
  seed: number | null;
  frequencyPenalty: number;
  presencePenalty: number;
  logitBias: Record<string, number>;
  /** Alternatives per token, 0 to 20; null for no logprobs. */
  logprobs: number | null;
  jsonMode: boolean;
  echo: boolean;
}
export interface TokenLogprob {
  token: string;
  bytes: number[];
  logprob: number;
  /** Set on the first token of an echoed prompt: nothing came before it, so `logprob` (-9999) says nothing. */
  isFirst?: true;
  top: { token: string; bytes: number[]; logprob: number }[];
}
export type GenerateChunk =
  | { type: "start"; promptTokens: number }
  | { type: "delta"; text: string; logprobs: TokenLogprob[] }
  | { type: "end"; finishReason: "stop" | "length"; promptTokens: number; completionTokens: number };

/** A text, or two: a prompt and what was said to it, or a question and the text to look for its answer in. */
export interface AskedText {
  text: string;
  second?: string;
}
export interface LabelScore {
  label: string;
  probability: number;
}

/** Answers from models. Errors are AppErrors: rate_limit_exceeded, context_length_exceeded, inference_failed. */
export interface Inference {
  /** Breaking out of the loop or aborting the signal stops the generation. */
  generate(target: InferenceTarget, request: GenerateRequest, signal: AbortSignal): AsyncIterable<GenerateChunk>;
  /** One list a text, all labels, most probable first. */
  classify(
    target: InferenceTarget,
    texts: (string | AskedText)[],
    signal: AbortSignal,
  ): Promise<{ scores: LabelScore[][]; numTokens: number }>;
  /** What the head of a model tuned to predict says of each input. */
  predict(
    target: InferenceTarget,
    inputs: AskedText[],
    signal: AbortSignal,
  ): Promise<{ predictions: Prediction[]; numTokens: number }>;
  embed(
    target: InferenceTarget,
    inputs: (string | number[])[],
    signal: AbortSignal,
  ): Promise<{ vectors: Float32Array[]; numTokens: number }>;
  /** Loaded processes and their memory. */
  loaded(): { basePath: string; adapters: string[]; rssBytes: number; busy: number }[];
  close(): Promise<void>;
}

// ---------------------------------------------------------------- the rest

/** One base model that can be trained and served here. */
export interface BaseModel {
  name: string;
  family: TrainSpec["base_model"]["family"];
  /** Null: known, but not on this machine yet (`prepare` fetches it). */
  path: string | null;
  numParameters: number;
  hiddenSize: number;
  numLayers: number;
  vocabSize: number;
  contextLength: number;
  licence: string;
  source: "bundled" | "local" | "hub";
}

export type TeacherSpec = NonNullable<TrainSpec["teacher"]>;

export interface Catalogue {
  list(): Promise<BaseModel[]>;
  /** Null: no such model. A hub name is looked up only when the hub is allowed. */
  find(name: string): Promise<BaseModel | null>;
  /** Puts the model on this disk (downloads or converts it). */
  prepare(name: string): Promise<BaseModel>;
}

export interface ExportInput {
  /** An adapter or a whole model, in `basePath` then too. */
  sourcePath: string;
  basePath: string;
  /** For the rows that the run held out. */
  runFolder: string;
  name: string;
  format: ExportFormat;
  quantize: ExportQuantize | null;
  prune: number;
  out: string;
}

/**
 * Model folders made of what runs left; each is there whole or not at all. One is written at a time, since that takes
 * the memory of a whole model. Errors are AppErrors.
 */
export interface Exporter {
  /** Writes a run's checkpoint as a model into `out`, unless it is there. Callers for the same `out` share one writing. */
  checkpoint(input: {
    runFolder: string;
    step: number;
    basePath: string;
    /** The adapter the run began with. */
    adapterPath: string | null;
    out: string;
  }): Promise<void>;
  /** Folds an adapter into its base: `out` becomes a model of its own. Aborting ends the writing. */
  merge(input: { basePath: string; adapterPath: string; out: string }, signal: AbortSignal): Promise<void>;
  /**
   * Writes a tuned model in a format for use elsewhere, loaded in a fresh process and compared before `out` is there.
   * `doing` hears what it is at. Aborting ends the writing.
   */
  write(input: ExportInput, options: { signal: AbortSignal; doing: (what: string) => void }): Promise<void>;
  /** Ends what is being written. */
  close(): Promise<void>;
}

/** The same question has the same answer. Rejects when there is none. */
export interface Tuner {
  /** One configuration within the dimensions. */
  suggest(question: Question): Promise<Values>;
  /** Shares of 1 by name, the largest first; empty when all scored alike. */
  importance(question: Question): Promise<Record<string, number>>;
}

/** Durable background work (DBOS): each job runs at least once, its effect is idempotent. */
export interface Background {
  /** Reads and checks an uploaded file. */
  processFile(projectId: string, fileId: string): Promise<void>;
  close(): Promise<void>;
}
