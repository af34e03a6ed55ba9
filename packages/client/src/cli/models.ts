/** `models`, `keys`, `version` of the server. */
import type { ModelObject } from "@fettle/contract";
import type { Context } from "./context.js";
import { exitCodes } from "./exit.js";
import { moment, printable, table } from "./text.js";

export async function models(context: Context): Promise<number> {
  const data = await context.client.models();
  const rows = data.map((model) => [
    printable(model.name),
    model.kind,
    model.family ?? "-",
    parameters(model),
    String(model.context_length ?? "-"),
    model.licence ?? "-",
    detailOf(model),
  ]);
  context.result({ data }, table(["MODEL", "KIND", "FAMILY", "PARAMETERS", "CONTEXT", "LICENCE", ""], rows));
  return exitCodes.ok;
}

const parameters = ({ num_parameters: count }: ModelObject): string =>
  count === null ? "-" : count >= 1e9 ? `${(count / 1e9).toFixed(1)} B` : `${Math.round(count / 1e6)} M`;

function detailOf(model: ModelObject): string {
  if (model.kind === "tuned") return `${model.task}, ${model.method} of ${model.base_model}`;
  return model.ready ? "ready" : "fetched when first used";
}

export async function keysList(context: Context): Promise<number> {
  const data = await context.client.keys.list();
  const state = (key: (typeof data)[number]): string =>
    key.revoked_at !== null
      ? `revoked ${moment(key.revoked_at)}`
      : key.expires_at !== null
        ? `until ${moment(key.expires_at)}`
        : "active";
  context.result(
    { data },
    table(
      ["KEY", "NAME", "ROLE", "HINT", "CREATED", "STATE"],
      data.map((key) => [key.id, printable(key.name), key.role, key.hint, moment(key.created_at), state(key)]),
    ),
  );
  return exitCodes.ok;
}

export async function keysCreate(
  context: Context,
  request: { name: string; admin?: boolean; days?: number },
): Promise<number> {
  const key = await context.client.keys.create({
    name: request.name,
    role: request.admin ? "admin" : "member",
    ...(request.days !== undefined && { expires_in_days: request.days }),
  });
  context.result(key, key.key);
  context.say(
    "This key is shown this once. Use it: export FETTLE_API_KEY=<key>, or OPENAI_API_KEY with OpenAI clients.",
  );
  return exitCodes.ok;
}

export async function keysRevoke(context: Context, { id }: { id: string }): Promise<number> {
  const done = await context.client.keys.revoke(id);
  context.result(done, `${id} is revoked.`);
  return exitCodes.ok;
}
