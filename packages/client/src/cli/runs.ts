/** `ps`, `logs`, `stop`, `resume`. */
import type { RunEventObject, RunObject } from "@fettle/contract";
import { hasEnded } from "../runs.js";
import type { Context } from "./context.js";
import { exitCodes } from "./exit.js";
import { duration, moment, printable, table } from "./text.js";

export async function ps(context: Context, { all }: { all?: boolean }): Promise<number> {
  const runs: RunObject[] = [];
  for (let after: string | undefined; ; after = runs.at(-1)?.id) {
    const page = await context.client.runs.list({ limit: all ? 100 : 20, ...(after !== undefined && { after }) });
    runs.push(...page.data);
    if (!all || !page.has_more || page.data.length === 0) break;
  }
  const rows = runs.map((run) => [
    run.id,
    run.status,
    progressOf(run),
    run.base_model,
    `${run.task ?? "-"}/${run.method ?? "-"}`,
    moment(run.created_at),
    run.fine_tuned_model ?? run.waiting ?? "",
  ]);
  const head = ["RUN", "STATUS", "STEP", "BASE MODEL", "TASK/METHOD", "CREATED", "TUNED MODEL"];
  context.result(
    { data: runs },
    runs.length > 0
      ? table(head, rows)
      : "No runs yet. Start one: fettle train data.jsonl --model NAME (names: fettle models).",
  );
  return exitCodes.ok;
}

function progressOf(run: RunObject): string {
  if (run.total_steps === null) return "-";
  const eta =
    run.status === "running" && run.eta_at !== null ? ` (${duration(run.eta_at - Date.now() / 1000)} left)` : "";
  return `${run.step}/${run.total_steps}${eta}`;
}

export const eventLine = (event: RunEventObject): string =>
  `${moment(event.created_at)}  ${event.level === "info" ? "" : `${event.level}: `}${printable(event.message)}`;

/** With `--json`: one document, or, following, one event a line and the run as the last line. */
export async function logs(context: Context, { run, follow }: { run: string; follow?: boolean }): Promise<number> {
  if (!follow) {
    const events: RunEventObject[] = [];
    for await (const event of context.client.runs.allEvents(run)) events.push(event);
    context.result({ data: events }, events.map(eventLine).join("\n"));
    return exitCodes.ok;
  }
  for await (const news of context.client.runs.follow(run, { signal: context.signal })) {
    if (news.type === "event") context.result(news.event, eventLine(news.event));
    else
      context.result(
        news.run,
        `${news.run.id} ${news.run.status}${news.run.error ? `: ${printable(news.run.error.message)}` : ""}`,
      );
  }
  return exitCodes.ok;
}

export async function stop(context: Context, { run, cancel }: { run: string; cancel?: boolean }): Promise<number> {
  const { runs } = context.client;
  const steered = cancel ? await runs.cancel(run) : await runs.pause(run);
  context.result(
    steered,
    hasEnded(steered) || steered.status === "paused"
      ? `${run} is ${steered.status}.`
      : `${run} is being ${cancel ? "cancelled" : "paused"}; it writes a checkpoint first.`,
  );
  if (!cancel) context.say(`Go on with it: fettle resume ${run}`);
  return exitCodes.ok;
}

export async function resume(context: Context, { run }: { run: string }): Promise<number> {
  const resumed = await context.client.runs.resume(run);
  context.result(resumed, `${run} is ${resumed.status}.`);
  context.say(`Follow it: fettle logs -f ${run}`);
  return exitCodes.ok;
}
