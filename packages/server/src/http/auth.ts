/** `Authorization: Bearer <key>`, or `api-key: <key>` as Azure's clients send it. Never from the query string: it ends in logs. */
export function presentedKey(headers: Headers): string | null {
  const bearer = /^Bearer +(\S+)\s*$/i.exec(headers.get("authorization") ?? "")?.[1];
  return bearer ?? headers.get("api-key");
}
