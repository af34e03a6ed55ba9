/** Cursor paging by `position`: `after` is the id of the last object the client has. */
import type { Page, PageRequest } from "../app/ports.js";
import type { Sql } from "./database.js";

export interface Listing<Row, T> {
  /** Table or view to read; has `id` and `position`. */
  table: string;
  /** Whose rows, over $1, $2 …; a cursor is looked up within it, so that a deleted row still serves as one. */
  scope: string;
  /** Which of them are listed. */
  where?: string;
  values: readonly unknown[];
  record: (row: Row) => T;
}

/** One page, newest first unless asked otherwise. An unknown cursor gives an empty page. */
export async function readPage<Row, T>(sql: Sql, listing: Listing<Row, T>, page: PageRequest): Promise<Page<T>> {
  const ascending = page.order === "asc";
  const values = [...listing.values, page.limit + 1];
  const where = listing.where === undefined ? listing.scope : `${listing.scope} and ${listing.where}`;
  let after = "";
  const limit = `$${values.length}`;
  if (page.after) {
    values.push(page.after);
    after = `and position ${ascending ? ">" : "<"} (select position from ${listing.table} where id = $${values.length} and ${listing.scope})`;
  }
  const rows = await sql.rows<Row>(
    `select * from ${listing.table} where ${where} ${after} order by position ${ascending ? "asc" : "desc"} limit ${limit}`,
    values,
  );
  return { data: rows.slice(0, page.limit).map(listing.record), hasMore: rows.length > page.limit };
}
