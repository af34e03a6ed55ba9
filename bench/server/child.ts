/** The measured process: the whole server with scripted answers in place of models. Prints its address, ends with its stdin. */
import { ScriptedInference } from "../../packages/server/src/inference/scripted.js";
import { startServer } from "../../packages/server/src/main.js";

const [home = "", adminKey = ""] = process.argv.slice(2);
const server = await startServer({
  env: {
    PATH: process.env.PATH,
    HOME: process.env.HOME,
    FETTLE_HOME: home,
    FETTLE_PORT: "0",
    FETTLE_ADMIN_KEY: adminKey,
  },
  cwd: home,
  inference: new ScriptedInference({ answer: () => "ok", maxQueue: 10_000 }),
});
process.stdout.write(`${server.url}\n`);
process.stdin.resume();
process.stdin.on("end", () => void server.close().then(() => process.exit(0)));
