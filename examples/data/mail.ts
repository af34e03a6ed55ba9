/** The readable part of a raw e-mail: subject and text body, without headers, markup, attachments. Pure. */

export interface Mail {
  subject: string;
  body: string;
}

interface Part {
  headers: Map<string, string>;
  body: string;
}

const maxDepth = 5;

export function readMail(raw: string): Mail {
  const part = splitPart(raw.replace(/^From .*\r?\n/, ""));
  return { subject: decodeWords(part.headers.get("subject") ?? "").trim(), body: readableText(part, 0).trim() };
}

function splitPart(raw: string): Part {
  const text = raw.replaceAll("\r\n", "\n");
  const border = text.indexOf("\n\n");
  const head = border === -1 ? text : text.slice(0, border);
  const headers = new Map<string, string>();
  for (const line of head.replaceAll(/\n[ \t]+/g, " ").split("\n")) {
    const colon = line.indexOf(":");
    if (colon > 0 && !headers.has(line.slice(0, colon).toLowerCase()))
      headers.set(line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim());
  }
  return { headers, body: border === -1 ? "" : text.slice(border + 2) };
}

/** Of several parts the first plain text is read; without one the first HTML, with its tags taken off. */
function readableText(part: Part, depth: number): string {
  const type = (part.headers.get("content-type") ?? "text/plain").toLowerCase();
  if (type.startsWith("multipart/") && depth < maxDepth) {
    const parts = splitMultipart(part).map((inner) => ({
      type: inner.headers.get("content-type")?.toLowerCase() ?? "text/plain",
      text: readableText(inner, depth + 1),
    }));
    const readable = parts.filter(({ text }) => text.trim() !== "");
    return (readable.find(({ type: inner }) => !inner.startsWith("text/html")) ?? readable[0])?.text ?? "";
  }
  if (!type.startsWith("text/")) return "";
  const text = decodeBody(part);
  return type.startsWith("text/html") || /^\s*<(!doctype|html|body|table|center|font)\b/i.test(text)
    ? withoutTags(text)
    : text;
}

function splitMultipart({ headers, body }: Part): Part[] {
  const border = /boundary="?([^";]+)"?/i.exec(headers.get("content-type") ?? "")?.[1];
  if (border === undefined) return [{ headers: new Map(), body }];
  const pieces = body.split(`--${border.trim()}`).slice(1);
  return pieces.filter((piece) => !piece.startsWith("--")).map((piece) => splitPart(piece.replace(/^[ \t]*\n/, "")));
}

function decodeBody({ headers, body }: Part): string {
  const encoding = (headers.get("content-transfer-encoding") ?? "").toLowerCase();
  if (encoding === "base64") return Buffer.from(body, "base64").toString("latin1");
  return encoding === "quoted-printable" ? quotedPrintable(body.replaceAll(/=[ \t]*\n/g, "")) : body;
}

const quotedPrintable = (text: string): string =>
  text.replaceAll(/=([0-9A-F]{2})/gi, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));

/** `=?iso-8859-1?Q?caf=E9?=` -> `café`. */
const decodeWords = (text: string): string =>
  text.replaceAll(/=\?[^?]+\?([QB])\?([^?]*)\?=/gi, (_, kind: string, word: string) =>
    kind.toUpperCase() === "B"
      ? Buffer.from(word, "base64").toString("latin1")
      : quotedPrintable(word.replaceAll("_", " ")),
  );

const entities: Record<string, string> = { amp: "&", lt: "<", gt: ">", quot: '"', nbsp: " ", copy: "(c)", reg: "(R)" };

const withoutTags = (html: string): string =>
  html
    .replaceAll(/<(style|script|head)\b[\s\S]*?<\/\1\s*>/gi, " ")
    .replaceAll(/<!--[\s\S]*?-->/g, "")
    .replaceAll(/<(br|p|tr|div|li|h\d)\b[^>]*>/gi, "\n")
    .replaceAll(/<[^>]*>/g, " ")
    .replaceAll(/&(?:#(\d+)|(\w+));/g, (whole, code: string | undefined, name: string | undefined) =>
      code === undefined
        ? (entities[(name ?? "").toLowerCase()] ?? whole)
        : String.fromCodePoint(Math.min(Number(code), 0xffff)),
    );
