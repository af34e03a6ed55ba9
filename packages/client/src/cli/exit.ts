/** Exit codes, and the way every failure is told. */
import { FettleError } from "../error.js";

export const exitCodes = {
  ok: 0,
  /** The run failed, the server refused, a check of `doctor` found something. */
  failed: 1,
  /** Wrong command, option or value. */
  usage: 2,
  /** No such run, model, file or key. */
  notFound: 3,
  /** No key, a wrong key, or one that may not do this. */
  auth: 4,
  /** Nothing answers at the server's address. */
  unreachable: 5,
  /** The state does not allow it now, or the server is busy. */
  conflict: 6,
  /** Ctrl-C. */
  interrupted: 130,
} as const;

export const exitHelp = `
Exit codes: 0 ok, 1 failed, 2 wrong usage, 3 not found, 4 key missing or refused, 5 server not reachable,
6 conflict or busy, 130 interrupted.`;

/** A failure found before or beside any request. */
export class CliError extends Error {
  override readonly name = "CliError";
  constructor(
    readonly code: string,
    message: string,
    readonly exitCode: number,
  ) {
    super(message);
  }
}

export const usageError = (message: string): CliError => new CliError("usage", message, exitCodes.usage);

export interface Told {
  exitCode: number;
  /** For people. */
  text: string;
  /** For `--json`. */
  document: { error: Record<string, unknown> };
}

/** Null: a fault of ours, whose stack should be seen. */
export function tell(error: unknown): Told | null {
  if (error instanceof CliError) {
    return {
      exitCode: error.exitCode,
      text: `error (${error.code}): ${error.message}`,
      document: { error: { code: error.code, message: error.message } },
    };
  }
  if (error instanceof FettleError)
    return { exitCode: exitCodeOf(error), text: textOf(error), document: { error: error.toJSON() } };
  if (error instanceof Error && error.name === "AbortError") {
    return {
      exitCode: exitCodes.interrupted,
      text: "Interrupted.",
      document: { error: { code: "interrupted", message: "Interrupted." } },
    };
  }
  return null;
}

function exitCodeOf(error: FettleError): number {
  if (error.code === "unreachable") return exitCodes.unreachable;
  if (error.status === 401 || error.status === 403) return exitCodes.auth;
  if (error.status === 404) return exitCodes.notFound;
  if (error.status === 409 || error.status === 429) return exitCodes.conflict;
  return exitCodes.failed;
}

const maxFaults = 10;

function textOf(error: FettleError): string {
  const { faults } = error.details;
  const lines = [`error (${error.code}): ${error.message}`];
  for (const fault of faults.slice(0, maxFaults)) {
    const place = [fault.line && `line ${fault.line}`, fault.column && `column ${fault.column}`, fault.path]
      .filter(Boolean)
      .join(", ");
    lines.push(`  ${place ? `${place}: ` : ""}${fault.message} ${fault.fix}`);
  }
  if (faults.length > maxFaults) lines.push(`  … and ${faults.length - maxFaults} more`);
  if (error.requestId !== null) lines.push(`  request id: ${error.requestId}`);
  return lines.join("\n");
}
