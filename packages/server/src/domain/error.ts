/** The one error class. Code, status and retry verdict come from the catalogue in the contract. */
import { type ErrorCode, errorCatalogue, type Fault } from "@fettle/contract";

export interface ErrorDetails {
  readonly faults?: readonly Fault[];
  readonly [key: string]: unknown;
}

export class AppError extends Error {
  override readonly name = "AppError";
  readonly param: string | null;
  readonly details: ErrorDetails | null;

  /** `message` says what happened, where, what was expected and what to do. */
  constructor(
    readonly code: ErrorCode,
    message: string,
    options: { param?: string | null; details?: ErrorDetails; cause?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.param = options.param ?? null;
    this.details = options.details ?? null;
  }

  get status(): number {
    return errorCatalogue[this.code].status;
  }

  get retry(): boolean {
    return errorCatalogue[this.code].retry;
  }
}
