/**
 * The error catalogue: every refusal Fettle can utter, once.
 *
 * `status`  HTTP status of the answer.
 * `retry`   whether sending the same request again can help; becomes `x-should-retry`.
 * `meaning` what happened, for docs/errors.md.
 * `fix`     what the reader can do about it.
 *
 * The OpenAI `type` is derived from the status (see `errorType`). docs/errors.md is generated from this
 * table by `npm run docs`, and a test fails when the two differ or when a code has no test.
 */
export interface ErrorEntry {
  readonly status: number;
  readonly retry: boolean;
  readonly meaning: string;
  readonly fix: string;
}

export const errorCatalogue = {
  // the request
  invalid_request: {
    status: 400,
    retry: false,
    meaning: "The request does not have the shape this route expects.",
    fix: "Read `param`: it names the field. `/openapi.json` has the whole schema.",
  },
  unknown_field: {
    status: 400,
    retry: false,
    meaning: "The request or config names a field that does not exist.",
    fix: "Use the nearest known name, which the message gives.",
  },
  value_out_of_range: {
    status: 400,
    retry: false,
    meaning: "A number, text or list is outside its bounds.",
    fix: "Stay within the bounds the message gives.",
  },
  body_too_large: {
    status: 413,
    retry: false,
    meaning: "The request body is larger than this route takes.",
    fix: "Send files over 512 MB through `/v1/uploads` in parts.",
  },
  unsupported_method: {
    status: 400,
    retry: false,
    meaning: "This fine-tuning method is not built yet.",
    fix: "Use `method.type: supervised`.",
  },
  unsupported_parameter: {
    status: 400,
    retry: false,
    meaning: "A parameter is valid OpenAI, but Fettle does not do it.",
    fix: "Leave the parameter out; the message says what works instead.",
  },
  not_found: {
    status: 404,
    retry: false,
    meaning: "No such route, or no object with this id in your project.",
    fix: "List the objects to see their ids; check that the key belongs to the right project.",
  },
  model_not_found: {
    status: 404,
    retry: false,
    meaning: "No model of this name is known, or your project may not use it.",
    fix: "Use the nearest name the message gives, or see `fettle models`.",
  },
  model_unavailable: {
    status: 400,
    retry: false,
    meaning: "The model is known, but could not be put on this machine.",
    fix: "The message says why: go online, set HF_TOKEN, or place the model's folder in FETTLE_HOME/models.",
  },
  method_not_allowed: {
    status: 405,
    retry: false,
    meaning: "The route exists, but not with this HTTP method.",
    fix: "`/openapi.json` lists the methods.",
  },
  // who is asking
  missing_api_key: {
    status: 401,
    retry: false,
    meaning: "No API key came with the request.",
    fix: "Send `Authorization: Bearer <key>`. The first start printed one; `fettle keys create` makes more.",
  },
  invalid_api_key: {
    status: 401,
    retry: false,
    meaning: "The API key is unknown, expired or revoked.",
    fix: "Make a new key with `fettle keys create`.",
  },
  permission_denied: {
    status: 403,
    retry: false,
    meaning: "The key is valid, but its role may not do this.",
    fix: "Use a key with the role `admin`.",
  },
  foreign_origin: {
    status: 403,
    retry: false,
    meaning: "The Host or Origin header names another site: a web page elsewhere may be driving this browser.",
    fix: "Call Fettle by the address it printed, or add the name to `server.allowed_hosts` in fettle.yaml.",
  },
  // state
  conflict: {
    status: 409,
    retry: false,
    meaning: "The object is in a state that does not allow this.",
    fix: "The message names the state and what it allows.",
  },
  idempotency_mismatch: {
    status: 409,
    retry: false,
    meaning: "The same Idempotency-Key came with a different body.",
    fix: "Use a new key for a new request.",
  },
  file_in_use: {
    status: 409,
    retry: false,
    meaning: "A run that has not ended reads this file.",
    fix: "Cancel the run first, or wait for its end.",
  },
  // data
  file_not_usable: {
    status: 400,
    retry: false,
    meaning: "The file was refused, deleted or has another purpose, so no run can read it.",
    fix: "The message says why. Upload it again with purpose `fine-tune`.",
  },
  file_empty: {
    status: 400,
    retry: false,
    meaning: "The file holds no row.",
    fix: "Upload a file with at least the number of rows the message gives.",
  },
  invalid_training_file: {
    status: 400,
    retry: false,
    meaning: "Rows of the file cannot be used for training.",
    fix: "Each fault gives line, field, reason and fix; download them all from `/api/data/{id}/faults`.",
  },
  too_few_rows: {
    status: 400,
    retry: false,
    meaning: "Fewer usable rows than a run needs.",
    fix: "Add rows: 10 is the least, 50 to 100 is where tuning begins to show.",
  },
  upload_incomplete: {
    status: 400,
    retry: false,
    meaning: "The parts do not add up to the bytes or checksum promised.",
    fix: "Send the missing parts, then complete again.",
  },
  // what a run can die of
  model_too_large: {
    status: 400,
    retry: false,
    meaning: "Training this model this way needs more memory than this machine has.",
    fix: "Use the model or method the message says would fit.",
  },
  incompatible_method: {
    status: 400,
    retry: false,
    meaning: "This task, method and model cannot work together.",
    fix: "Use the nearest combination that works; the message names it.",
  },
  training_failed: {
    status: 500,
    retry: false,
    meaning: "The trainer ended with an error, also after its retries.",
    fix: "Read the last lines of its log in the message; `fettle logs <run>` has all of them.",
  },
  training_diverged: {
    status: 500,
    retry: false,
    meaning: "The loss became NaN or infinite.",
    fix: "Lower learning_rate; the last good checkpoint is kept.",
  },
  trainer_stalled: {
    status: 500,
    retry: true,
    meaning: "The trainer gave no sign of life, or made no progress, and was stopped.",
    fix: "Resume the run; it goes on from its last checkpoint.",
  },
  out_of_memory: {
    status: 500,
    retry: false,
    meaning: "The machine ran out of memory while training.",
    fix: "Lower per_device_train_batch_size or max_length, or choose a smaller model.",
  },
  disk_full: {
    status: 507,
    retry: true,
    meaning: "The disk is full. The previous checkpoint is whole.",
    fix: "Free space, then resume the run.",
  },
  artefact_mismatch: {
    status: 500,
    retry: false,
    meaning: "The saved model, loaded afresh, does not answer as the trained one did.",
    fix: "Run it again; if it happens twice, report it with the run's log.",
  },
  export_not_possible: {
    status: 400,
    retry: false,
    meaning: "The model cannot be written in the format that was asked for.",
    fix: "The message says what that format cannot hold; `merged` takes every tuned model.",
  },
  // serving
  rate_limit_exceeded: {
    status: 429,
    retry: true,
    meaning: "Too many requests are waiting for this model.",
    fix: "Wait for `retry-after` seconds.",
  },
  context_length_exceeded: {
    status: 400,
    retry: false,
    meaning: "The prompt and the answer asked for do not fit the model's context.",
    fix: "Shorten the messages or lower max_completion_tokens.",
  },
  inference_failed: {
    status: 500,
    retry: true,
    meaning: "The model process died or failed while answering.",
    fix: "Send the request again; the process is started anew.",
  },
  // the installation
  config_invalid: {
    status: 500,
    retry: false,
    meaning: "fettle.yaml or an environment variable is wrong.",
    fix: "The message gives line and column, and the nearest known name.",
  },
  port_in_use: {
    status: 500,
    retry: false,
    meaning: "Another program listens on the port.",
    fix: "Stop it, or set FETTLE_PORT to a free port.",
  },
  node_unsupported: {
    status: 500,
    retry: false,
    meaning: "The Node that runs the set-up is too old.",
    fix: "Install Node 20.19 or newer; 24 is recommended.",
  },
  setup_failed: {
    status: 500,
    retry: true,
    meaning: "npm or pip could not install what Fettle needs.",
    fix: "The message has its last lines. Check the network, then run the same command again: it goes on.",
  },
  python_missing: {
    status: 500,
    retry: false,
    meaning: "No Python was found.",
    fix: "Install Python 3.11 or newer; `fettle doctor` shows the command.",
  },
  python_unsupported: {
    status: 500,
    retry: false,
    meaning: "The Python found is too old.",
    fix: "Install Python 3.11 or newer, or point FETTLE_PYTHON at one.",
  },
  database_unavailable: {
    status: 503,
    retry: true,
    meaning: "PostgreSQL did not answer.",
    fix: "See `fettle doctor`; with DATABASE_URL, check that the server is up.",
  },
  internal_error: {
    status: 500,
    retry: true,
    meaning: "A fault of ours. The log has the details under the request id.",
    fix: "Try again; if it stays, report it with the request id.",
  },
} as const satisfies Record<string, ErrorEntry>;

export type ErrorCode = keyof typeof errorCatalogue;

/** OpenAI's `error.type` for a status. */
export function errorType(status: number): string {
  if (status === 401) return "authentication_error";
  if (status === 403) return "permission_error";
  if (status === 429) return "rate_limit_error";
  return status >= 500 ? "server_error" : "invalid_request_error";
}

/** One place in an input that is wrong. `line` and `column` are 1-based; `path` is a JSON path such as `messages[2].role`. */
export interface Fault {
  readonly line?: number;
  readonly column?: number;
  readonly path?: string;
  readonly rule: string;
  readonly message: string;
  readonly fix: string;
}
