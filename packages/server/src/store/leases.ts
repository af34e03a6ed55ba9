/** Who watches a run. Expiry is by the database's clock, so that clocks of servers may differ. */
import type { Lease } from "../app/ports.js";
import type { Sql } from "./database.js";

interface LeaseRow {
  lease_owner: string | null;
  lease_token: number;
  free: boolean;
}

interface Claim {
  id: string;
  owner: string;
  ttlMs: number;
  isDead?: (owner: string) => boolean;
}

/** The update names the owner and token that were seen: of two that see the same lease free, one gets it. */
export async function acquireLease(sql: Sql, claim: Claim): Promise<Lease | null> {
  const [row] = await sql.rows<LeaseRow>(
    "select lease_owner, lease_token, lease_owner is null or lease_expires_at < clock_timestamp() as free from fettle.runs where id = $1",
    [claim.id],
  );
  if (row === undefined) return null;
  const ours = row.lease_owner === claim.owner;
  const dead = row.lease_owner !== null && (claim.isDead?.(row.lease_owner) ?? false);
  if (!row.free && !ours && !dead) return null;
  const token = ours ? row.lease_token : row.lease_token + 1;
  const taken = await sql.run(
    `update fettle.runs set lease_owner = $2, lease_token = $3, lease_expires_at = clock_timestamp() + $4 * interval '1 millisecond'
     where id = $1 and lease_owner is not distinct from $5 and lease_token = $6`,
    [claim.id, claim.owner, token, claim.ttlMs, row.lease_owner, row.lease_token],
  );
  return taken > 0 ? { runId: claim.id, owner: claim.owner, token } : null;
}

export async function renewLease(sql: Sql, lease: Lease, ttlMs: number): Promise<boolean> {
  const renewed = await sql.run(
    "update fettle.runs set lease_expires_at = clock_timestamp() + $4 * interval '1 millisecond' where id = $1 and lease_owner = $2 and lease_token = $3",
    [lease.runId, lease.owner, lease.token, ttlMs],
  );
  return renewed > 0;
}

/** The token stays: whoever comes next gets a higher one, and what the old owner still writes is refused. */
export async function releaseLease(sql: Sql, lease: Lease): Promise<void> {
  await sql.run(
    "update fettle.runs set lease_owner = null, lease_expires_at = null where id = $1 and lease_owner = $2 and lease_token = $3",
    [lease.runId, lease.owner, lease.token],
  );
}
