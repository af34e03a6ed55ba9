/**
 * API keys: `fettle_` + 43 characters of base64url (256 random bits). Only the SHA-256 is stored; the key is shown once.
 * A key belongs to one project and has a role. Expiry and revocation act on the next request.
 */
import { createHash } from "node:crypto";
import { AppError } from "../domain/error.js";
import type { AppDeps, Caller } from "./deps.js";
import type { ApiKeyRecord } from "./ports.js";

/** The project of a fresh installation. */
export const defaultProject = "default";
const dayMs = 86_400_000;
/** `last_used_at` is written at most this often: a busy key must not cost a write per request. */
const touchEveryMs = 60_000;

export const hashKey = (secret: string): string => createHash("sha256").update(secret, "utf8").digest("hex");

type KeyDeps = Pick<AppDeps, "store" | "clock" | "ids">;

export interface NewKey {
  projectId: string;
  name: string;
  role: ApiKeyRecord["role"];
  expiresInDays?: number | undefined;
}
export interface CreatedKey {
  record: ApiKeyRecord;
  secret: string;
}

export const newSecret = (deps: Pick<AppDeps, "ids">): string =>
  `fettle_${Buffer.from(deps.ids.bytes(32)).toString("base64url")}`;

/** `secret` is given only by the installation (FETTLE_ADMIN_KEY, or the key file of this home). */
export async function createKey(deps: KeyDeps, input: NewKey, secret: string = newSecret(deps)): Promise<CreatedKey> {
  const now = deps.clock.now();
  const record: ApiKeyRecord = {
    id: deps.ids.make("key_"),
    projectId: input.projectId,
    name: input.name,
    role: input.role,
    hint: secret.length >= 24 ? `${secret.slice(0, 10)}…${secret.slice(-4)}` : "…",
    createdAt: now,
    expiresAt: input.expiresInDays === undefined ? null : now + input.expiresInDays * dayMs,
    revokedAt: null,
    lastUsedAt: null,
  };
  await deps.store.keys.create(record, hashKey(secret));
  return { record, secret };
}

const usable = (key: ApiKeyRecord, now: number): boolean =>
  key.revokedAt === null && (key.expiresAt === null || key.expiresAt > now);

/** Throws `missing_api_key` or `invalid_api_key`; unknown, expired and revoked keys are told alike. */
export async function authenticate(
  deps: Pick<AppDeps, "store" | "clock" | "log">,
  secret: string | null,
): Promise<Caller> {
  if (secret === null || secret === "") {
    throw new AppError(
      "missing_api_key",
      "No API key came with the request. Send the header `Authorization: Bearer <key>`; the first start printed a key, and it is in the file admin_key of the data folder.",
    );
  }
  const now = deps.clock.now();
  const key = await deps.store.keys.findByHash(hashKey(secret));
  if (key === null || !usable(key, now)) {
    throw new AppError(
      "invalid_api_key",
      "The API key is unknown, expired or revoked. Make a new one with `fettle keys create`.",
    );
  }
  if (key.lastUsedAt === null || now - key.lastUsedAt >= touchEveryMs) {
    deps.store.keys
      .touch(key.id, now)
      .catch((error: unknown) => deps.log.warn({ err: error, key: key.id }, "could not note the use of a key"));
  }
  return { projectId: key.projectId, keyId: key.id, role: key.role };
}

export async function listKeys(deps: Pick<AppDeps, "store">, input: { projectId: string }): Promise<ApiKeyRecord[]> {
  return deps.store.keys.list(input.projectId);
}

export async function revokeKey(
  deps: Pick<AppDeps, "store" | "clock">,
  input: { projectId: string; keyId: string },
): Promise<void> {
  const revoked = await deps.store.keys.revoke(input.projectId, input.keyId, deps.clock.now());
  if (!revoked)
    throw new AppError(
      "not_found",
      `No key "${input.keyId}" that is still valid in this project. GET /api/keys lists them.`,
      { param: "key_id" },
    );
}

const environmentKeyName = "FETTLE_ADMIN_KEY";

/** Makes the key of the environment valid, and its predecessors invalid: changing the variable changes the key. */
export async function adoptEnvironmentKey(deps: KeyDeps, secret: string): Promise<void> {
  const present = await deps.store.keys.findByHash(hashKey(secret));
  for (const key of await deps.store.keys.list(defaultProject)) {
    if (key.name === environmentKeyName && key.id !== present?.id && key.revokedAt === null) {
      await deps.store.keys.revoke(defaultProject, key.id, deps.clock.now());
    }
  }
  if (present === null)
    await createKey(deps, { projectId: defaultProject, name: environmentKeyName, role: "admin" }, secret);
  else if (present.revokedAt !== null) {
    throw new AppError(
      "config_invalid",
      "FETTLE_ADMIN_KEY holds a key that was revoked. Set it to a new one, or unset it.",
    );
  }
}
