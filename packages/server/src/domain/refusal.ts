/** A refusal as a value: the domain does not throw. */
import type { ErrorCode } from "@fettle/contract";

export interface DomainRefusal {
  code: ErrorCode;
  message: string;
  /** The request field to change, by its wire name. */
  param: string | null;
}

export type Decided<T> = { ok: true; value: T } | { ok: false; refusal: DomainRefusal };

export const decided = <T>(value: T): Decided<T> => ({ ok: true, value });
export const refused = (
  code: ErrorCode,
  param: string | null,
  message: string,
): { ok: false; refusal: DomainRefusal } => ({ ok: false, refusal: { code, message, param } });
