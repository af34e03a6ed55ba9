/**
 * Who may drive this server through a browser: nobody but its own pages.
 *
 * DNS rebinding makes a foreign name point at 127.0.0.1, so the Host must be one of ours; an IP address cannot be
 * rebound and is always fine. A page elsewhere cannot forge Origin and Sec-Fetch-Site, so a foreign value is refused.
 */
import { isIP } from "node:net";
import { AppError } from "../domain/error.js";

export interface Addressed {
  host: string | null;
  origin: string | null;
  secFetchSite: string | null;
}

const loopbackNames = ["localhost"];

export function checkOrigin(request: Addressed, allowedHosts: readonly string[]): void {
  const host = request.host?.toLowerCase() ?? "";
  const name = nameOf(host);
  if (name === null || !(isIP(name) !== 0 || loopbackNames.includes(name) || allowedHosts.includes(name))) {
    throw foreign(
      `The Host header is "${host.slice(0, 100)}": expected localhost, an IP address, or a name of server.allowed_hosts in fettle.yaml.`,
    );
  }
  if (request.origin !== null && hostOf(request.origin) !== host) {
    throw foreign(
      `The Origin header is "${request.origin.slice(0, 100)}", this server is "${host.slice(0, 100)}": a page of another site may be driving this browser. Call the API from your own code instead.`,
    );
  }
  if (request.secFetchSite === "cross-site" || request.secFetchSite === "same-site") {
    throw foreign(
      `The browser says this request comes from another site (Sec-Fetch-Site: ${request.secFetchSite}). Open the address Fettle printed.`,
    );
  }
}

const foreign = (message: string): AppError => new AppError("foreign_origin", message);

/** The host without its port and without the brackets of IPv6; null when malformed. */
function nameOf(host: string): string | null {
  const match = /^(?:\[([0-9a-f:.]+)\]|([a-z0-9.-]+))(?::\d{1,5})?$/.exec(host);
  return match?.[1] ?? match?.[2] ?? null;
}

function hostOf(origin: string): string | null {
  try {
    return new URL(origin).host.toLowerCase();
  } catch {
    return null;
  }
}
