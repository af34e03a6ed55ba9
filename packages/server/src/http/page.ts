/**
 * The status page: one self-contained document. It holds no data; after a key is entered (kept in sessionStorage, so it
 * goes with the tab) it asks the API. Everything shown is set as text, never as markup.
 */
import { createHash } from "node:crypto";

const style = `
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
form { display: flex; flex-wrap: wrap; gap: .5rem; align-items: end; }
label { display: block; } input, button { font: inherit; padding: .4rem .6rem; }
input { min-width: 20rem; max-width: 100%; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; }
th, td { text-align: left; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid color-mix(in srgb, currentColor 25%, transparent); vertical-align: top; }
.scroll { overflow-x: auto; } [role=alert] { font-weight: 600; } [hidden] { display: none; }
:focus-visible { outline: 3px solid Highlight; outline-offset: 2px; }
`;

const script = `
"use strict";
const byId = (id) => document.getElementById(id);
const ask = async (path) => {
  const response = await fetch(path, { headers: { authorization: "Bearer " + sessionStorage.getItem("fettle_key") }, cache: "no-store" });
  const body = await response.json();
  if (!response.ok) throw Object.assign(new Error(body.error ? body.error.message : response.statusText), { status: response.status });
  return body;
};
const gigabytes = (bytes) => (bytes / 1e9).toFixed(1) + " GB";
const fill = (id, rows, none) => {
  const body = byId(id);
  const cells = rows.length === 0 ? [[none]] : rows;
  body.replaceChildren(...cells.map((row) => {
    const tr = document.createElement("tr");
    tr.append(...row.map((text, column) => {
      const cell = document.createElement(column === 0 && rows.length > 0 ? "th" : "td");
      if (column === 0 && rows.length > 0) cell.scope = "row";
      if (rows.length === 0) cell.colSpan = 9;
      cell.textContent = text;
      return cell;
    }));
    return tr;
  }));
};
const say = (text) => { byId("problem").textContent = text; };
let timer = 0;
const refresh = async () => {
  clearTimeout(timer);
  try {
    const [status, runs, models] = await Promise.all([ask("/api/status"), ask("/api/runs?limit=20"), ask("/api/models")]);
    byId("facts").textContent = "Fettle " + status.version + ". Database " + status.database + ". " + gigabytes(status.disk.free_bytes) + " of disk and " + gigabytes(status.memory.free_bytes) + " of memory free.";
    fill("runs", runs.data.map((run) => [run.id, run.model, run.status, run.total_steps ? run.step + " of " + run.total_steps : String(run.step), run.error ? run.error.message : run.waiting || run.fine_tuned_model || ""]), "No runs yet.");
    fill("models", models.data.map((model) => [model.name, model.kind, model.task || model.family || "", model.ready ? "yes" : "no"]), "No models.");
    byId("data").hidden = false;
    byId("forget").hidden = false;
    say("");
    timer = setTimeout(refresh, 5000);
  } catch (error) {
    if (error.status === 401) { sessionStorage.removeItem("fettle_key"); byId("data").hidden = true; byId("forget").hidden = true; }
    else timer = setTimeout(refresh, 5000);
    say(error.message);
  }
};
byId("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("fettle_key", byId("key").value.trim());
  byId("key").value = "";
  refresh();
});
byId("forget").addEventListener("click", () => { sessionStorage.removeItem("fettle_key"); location.reload(); });
if (sessionStorage.getItem("fettle_key")) refresh();
`;

export const statusPage = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Fettle</title>
<link rel="icon" href="data:,">
<style>${style}</style>
</head>
<body>
<main>
<h1>Fettle</h1>
<p>The API is at <code>/v1</code> (OpenAI-compatible) and <code>/api</code>. To see runs and models, enter an API key. The first start printed one; it is in the file <code>admin_key</code> of the data folder.</p>
<form id="enter">
<div><label for="key">API key</label><input id="key" type="password" autocomplete="off" spellcheck="false" required></div>
<button type="submit">Show</button>
<button type="button" id="forget" hidden>Forget the key</button>
</form>
<p id="problem" role="alert"></p>
<div id="data" hidden>
<p id="facts" role="status"></p>
<h2 id="runs-title">Runs</h2>
<div class="scroll" role="region" aria-labelledby="runs-title" tabindex="0"><table aria-labelledby="runs-title"><thead><tr><th scope="col">Run</th><th scope="col">Model</th><th scope="col">Status</th><th scope="col">Step</th><th scope="col">Result</th></tr></thead><tbody id="runs"></tbody></table></div>
<h2 id="models-title">Models</h2>
<div class="scroll" role="region" aria-labelledby="models-title" tabindex="0"><table aria-labelledby="models-title"><thead><tr><th scope="col">Name</th><th scope="col">Kind</th><th scope="col">Task</th><th scope="col">Ready</th></tr></thead><tbody id="models"></tbody></table></div>
</div>
<noscript><p>This page needs JavaScript; the API does not.</p></noscript>
</main>
<script>${script}</script>
</body>
</html>
`;

const hashOf = (text: string): string => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;

/** Only the two inline blocks above may run; nothing is loaded from anywhere. */
export const pagePolicy = [
  "default-src 'none'",
  `script-src ${hashOf(script)}`,
  `style-src ${hashOf(style)}`,
  "img-src data:",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join("; ");
