/** The one error of the client: the server's own error object, or `unreachable` when there was no answer. */
import type { ErrorBody, ErrorCode, Fault } from "@fettle/contract";

export interface FettleErrorFacts {
  /** HTTP status; 0 when no answer came. */
  status: number;
  /** A code of docs/errors.md, `unreachable`, or `invalid_response` when the answer was not Fettle's. */
  code: ErrorCode | "unreachable" | "invalid_response" | (string & {});
  param?: string | null;
  faults?: readonly Fault[];
  requestId?: string | null;
  cause?: unknown;
}

export class FettleError extends Error {
  override readonly name = "FettleError";
  readonly status: number;
  readonly code: FettleErrorFacts["code"];
  readonly param: string | null;
  readonly details: { faults: readonly Fault[] };
  readonly requestId: string | null;

  constructor(message: string, facts: FettleErrorFacts) {
    super(message, facts.cause === undefined ? undefined : { cause: facts.cause });
    this.status = facts.status;
    this.code = facts.code;
    this.param = facts.param ?? null;
    this.details = { faults: facts.faults ?? [] };
    this.requestId = facts.requestId ?? null;
  }

  /** The error as one plain object, for `--json` and logs. */
  toJSON(): Record<string, unknown> {
    const { code, message, status, param, details, requestId } = this;
    return { code, message, status, param, details, request_id: requestId };
  }
}

/** From an error answer's body, already parsed as JSON or null. */
export function errorFrom(response: Response, body: ErrorBody | null): FettleError {
  const requestId = response.headers.get("x-request-id");
  if (body === null) {
    return new FettleError(
      `${response.url} answered ${response.status} without Fettle's error object. Check that the address is a Fettle server.`,
      { status: response.status, code: "invalid_response", requestId },
    );
  }
  const { message, code, param, faults, request_id } = body.error;
  return new FettleError(message, {
    status: response.status,
    code: code ?? "invalid_response",
    param,
    ...(faults !== undefined && { faults: faults as Fault[] }),
    requestId: request_id ?? requestId,
  });
}
