/** The one mapper from errors to answers. What is not an AppError is a fault of ours: it says nothing but the request id. */
import { type ErrorBody, errorType } from "@fettle/contract";
import { AppError } from "../domain/error.js";

export interface ErrorAnswer {
  status: number;
  body: ErrorBody;
  headers: Record<string, string>;
}

/** Faults shown in an error body; the file's report has all of them. */
const maxFaults = 20;

export function answerTo(error: unknown, requestId: string): ErrorAnswer {
  const known = error instanceof AppError ? error : internal(requestId, error);
  const retry = known.details?.["retry"] === true || known.retry;
  const headers: Record<string, string> = { "x-should-retry": String(retry) };
  if (retry) headers["retry-after"] = String(known.details?.["retryAfterSeconds"] ?? 1);
  if (known.status === 401) headers["www-authenticate"] = "Bearer";
  if (Array.isArray(known.details?.["allow"])) headers["allow"] = known.details["allow"].join(", ");
  const faults = known.details?.faults?.slice(0, maxFaults).map((fault) => ({ ...fault }));
  return {
    status: known.status,
    headers,
    body: {
      error: {
        message: known.message,
        type: errorType(known.status),
        param: known.param,
        code: known.code,
        request_id: requestId,
        ...(faults !== undefined && faults.length > 0 && { faults }),
      },
    },
  };
}

const internal = (requestId: string, cause: unknown): AppError =>
  new AppError(
    "internal_error",
    `Something went wrong on our side. Try again; if it stays, report it with the request id ${requestId}.`,
    { cause },
  );

export function errorResponse(error: unknown, requestId: string): Response {
  const { status, body, headers } = answerTo(error, requestId);
  return Response.json(body, { status, headers });
}
