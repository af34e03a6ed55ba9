/** The connection pool, transactions, and the one place where PostgreSQL's errors become ours. */
import pg from "pg";
import { AppError } from "../domain/error.js";

/** Runs SQL: on any pooled connection, or on the one of a transaction. */
export interface Sql {
  /** The rows. `$1` … are `values`; names are never pasted into the text. */
  rows<Row>(text: string, values?: readonly unknown[]): Promise<Row[]>;
  /** How many rows the statement touched. */
  run(text: string, values?: readonly unknown[]): Promise<number>;
}

export interface Database extends Sql {
  readonly url: string;
  /** Commits when `work` resolves; rolls back and rethrows when it rejects. */
  transaction<T>(work: (sql: Sql) => Promise<T>): Promise<T>;
  close(): Promise<void>;
}

const int8 = 20;
/** Our bigints are milliseconds, bytes and counters, all below 2^53. */
export const columnTypes: pg.CustomTypesConfig = {
  getTypeParser: ((oid: number, format?: "text" | "binary") =>
    oid === int8 ? Number : pg.types.getTypeParser(oid, format as "text")) as pg.CustomTypesConfig["getTypeParser"],
};

const connectionLost = new Set([
  "ECONNREFUSED",
  "ECONNRESET",
  "EPIPE",
  "ETIMEDOUT",
  "ENOTFOUND",
  "57P01",
  "57P02",
  "57P03",
  "53300",
]);

/** Lost connections are `database_unavailable`, no space is `disk_full`; anything else stays as it was. */
export function asAppError(error: unknown): unknown {
  if (!(error instanceof Error) || error instanceof AppError) return error;
  const code = "code" in error && typeof error.code === "string" ? error.code : "";
  if (code === "53100") {
    return new AppError(
      "disk_full",
      `The database could not write: ${error.message}. Free space on its disk and try again.`,
      { cause: error },
    );
  }
  const lost =
    connectionLost.has(code) ||
    code.startsWith("08") ||
    /Connection terminated|timeout exceeded when trying to connect|the database system is/i.test(error.message);
  if (!lost) return error;
  return new AppError(
    "database_unavailable",
    `PostgreSQL did not answer (${error.message || code}). Try again in a moment.`,
    { cause: error },
  );
}

function sqlOn(client: pg.Pool | pg.PoolClient): Sql {
  const send = async (text: string, values: readonly unknown[]) => {
    try {
      return await client.query(text, [...values]);
    } catch (error) {
      throw asAppError(error);
    }
  };
  return {
    rows: async <Row>(text: string, values: readonly unknown[] = []) => (await send(text, values)).rows as Row[],
    run: async (text, values = []) => (await send(text, values)).rowCount ?? 0,
  };
}

export function openDatabase(url: string, options: { maxConnections?: number } = {}): Database {
  const pool = new pg.Pool({
    connectionString: url,
    max: options.maxConnections ?? 10,
    types: columnTypes,
    connectionTimeoutMillis: 10_000,
    idleTimeoutMillis: 30_000,
    application_name: "fettle",
    keepAlive: true,
  });
  // An idle connection that breaks is replaced by the pool; without a listener its error would end the process.
  pool.on("error", () => undefined);
  return {
    url,
    ...sqlOn(pool),
    transaction: (work) => inTransaction(pool, work),
    close: () => pool.end(),
  };
}

async function inTransaction<T>(pool: pg.Pool, work: (sql: Sql) => Promise<T>): Promise<T> {
  const client = await pool.connect().catch((error: unknown) => {
    throw asAppError(error);
  });
  let broken: Error | undefined;
  const onError = (error: Error): void => {
    broken = error;
  };
  client.on("error", onError);
  try {
    await client.query("begin");
    const result = await work(sqlOn(client));
    await client.query("commit");
    return result;
  } catch (error) {
    await client.query("rollback").catch((failure: Error) => {
      broken = failure;
    });
    throw asAppError(error);
  } finally {
    client.off("error", onError);
    client.release(broken);
  }
}

/** A value for a json column. PostgreSQL refuses NUL and lone surrogates, in keys too: both become U+FFFD. */
export function toJson(value: unknown): string | null {
  return value === null || value === undefined ? null : JSON.stringify(cleanValue(value));
}

/** Text that PostgreSQL accepts. */
export function cleanText(text: string): string {
  return text.replaceAll("\0", "\uFFFD").replace(/\p{Surrogate}/gu, "\uFFFD");
}

function cleanValue(value: unknown): unknown {
  if (typeof value === "string") return cleanText(value);
  if (Array.isArray(value)) return value.map(cleanValue);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [cleanText(key), cleanValue(inner)]));
}
