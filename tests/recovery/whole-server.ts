/** The whole server, models answered by a script: `argv[2]` is its environment as JSON. Prints its address when it answers. */
import { ScriptedInference } from "../../packages/server/src/inference/scripted.js";
import { startServer } from "../../packages/server/src/main.js";
import { quietLog } from "./platform.js";

const env = JSON.parse(process.argv[2] ?? "{}") as Record<string, string>;
const server = await startServer({
  env,
  cwd: env["FETTLE_HOME"] ?? "",
  inference: new ScriptedInference(),
  log: quietLog,
});
process.stdout.write(`${server.url}\n`);
