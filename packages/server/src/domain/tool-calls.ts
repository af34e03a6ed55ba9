/** Tools and calls of a chat row, in OpenAI's present and older (`functions`, `function_call`) spelling. Pure. */
import type { Fault } from "@fettle/contract";
import { isRecord, own, quoted, typeName } from "./fault.js";

export type NotedFault = Required<Pick<Fault, "path" | "rule" | "message" | "fix">>;

/** The part of `RowNotes` needed here. */
export interface FaultNotes {
  fault(found: NotedFault): void;
}

interface CallPlace {
  path: string;
  role: unknown;
  notes: FaultNotes;
}

/** The message's calls in the present spelling; null when it makes none. */
export function readToolCalls(message: Record<string, unknown>, { path, role, notes }: CallPlace): unknown[] | null {
  const older = own(message, "function_call");
  const calls = own(message, "tool_calls");
  if ((calls === undefined || calls === null) && (older === undefined || older === null)) return null;
  if (role !== "assistant") {
    const key = calls === undefined || calls === null ? "function_call" : "tool_calls";
    notes.fault({
      path: `${path}.${key}`,
      rule: "tool_calls_not_assistant",
      message: `${path}.${key} is on a turn of role ${quoted(role)}: only the assistant calls tools.`,
      fix: "Move it to an assistant message.",
    });
    return null;
  }
  if (calls === undefined || calls === null) {
    checkFunction(older, `${path}.function_call`, notes);
    const name = isRecord(older) ? String(own(older, "name")) : "";
    return [{ id: `call_${name}`, type: "function", function: older }];
  }
  if (!Array.isArray(calls) || calls.length === 0) {
    const what = Array.isArray(calls) ? "an empty list" : typeName(calls);
    notes.fault({
      path: `${path}.tool_calls`,
      rule: "tool_calls_invalid",
      message: `${path}.tool_calls is ${what}: expected a list of at least one call.`,
      fix: "Leave tool_calls out when no tool is called.",
    });
    return null;
  }
  for (const [index, call] of calls.entries()) checkCall(call, `${path}.tool_calls[${index}]`, notes);
  return calls;
}

const callFix = 'Write {"id": "call_1", "type": "function", "function": {"name": "…", "arguments": "{…}"}}.';

function checkCall(call: unknown, path: string, notes: FaultNotes): void {
  if (!isRecord(call)) {
    notes.fault({
      path,
      rule: "tool_call_invalid",
      message: `${path} is ${typeName(call)}: expected an object.`,
      fix: callFix,
    });
    return;
  }
  const id = own(call, "id");
  if (typeof id !== "string" || id === "")
    notes.fault({
      path: `${path}.id`,
      rule: "tool_call_invalid",
      message: `${path}.id is ${id === "" ? "empty" : typeName(id)}: expected a text.`,
      fix: callFix,
    });
  const type = own(call, "type");
  if (type !== "function")
    notes.fault({
      path: `${path}.type`,
      rule: "tool_call_invalid",
      message: `${path}.type is ${type === undefined ? "missing" : quoted(type)}: expected "function".`,
      fix: callFix,
    });
  checkFunction(own(call, "function"), `${path}.function`, notes);
}

function checkFunction(called: unknown, path: string, notes: FaultNotes): void {
  if (!isRecord(called)) {
    notes.fault({
      path,
      rule: "tool_call_invalid",
      message: `${path} is ${typeName(called)}: expected an object with name and arguments.`,
      fix: callFix,
    });
    return;
  }
  const name = own(called, "name");
  if (typeof name !== "string" || name === "")
    notes.fault({
      path: `${path}.name`,
      rule: "tool_call_invalid",
      message: `${path}.name is ${name === "" ? "empty" : typeName(name)}: expected a text.`,
      fix: callFix,
    });
  const given = own(called, "arguments");
  if (typeof given !== "string" || !isJsonObject(given)) {
    const what = typeof given === "string" ? quoted(given) : typeName(given);
    notes.fault({
      path: `${path}.arguments`,
      rule: "tool_arguments_invalid",
      message: `${path}.arguments is ${what}: expected a JSON object as text.`,
      fix: 'Write the arguments as text, such as "{\\"city\\": \\"Bern\\"}".',
    });
  }
}

function isJsonObject(text: string): boolean {
  try {
    return isRecord(JSON.parse(text));
  } catch {
    return false;
  }
}

const toolFix = 'Write {"type": "function", "function": {"name": "…", "parameters": {…}}}.';

/** The row's tools in the present spelling; null when it has none. */
export function checkTools(row: Record<string, unknown>, notes: FaultNotes): unknown[] | null {
  const key = own(row, "tools") === undefined || own(row, "tools") === null ? "functions" : "tools";
  const tools = own(row, key);
  if (tools === undefined || tools === null) return null;
  if (!Array.isArray(tools) || tools.length < 1 || tools.length > 128) {
    const what = Array.isArray(tools) ? `a list of ${tools.length}` : typeName(tools);
    notes.fault({
      path: key,
      rule: "tools_invalid",
      message: `${key} is ${what}: expected a list of 1 to 128 tools.`,
      fix: `Leave ${key} out when there is no tool.`,
    });
    return null;
  }
  const present = key === "tools" ? tools : tools.map((called: unknown) => ({ type: "function", function: called }));
  for (const [index, tool] of present.entries()) {
    const path = `${key}[${index}]`;
    const called = isRecord(tool) ? own(tool, "function") : undefined;
    const name = isRecord(called) ? own(called, "name") : undefined;
    const parameters = isRecord(called) ? own(called, "parameters") : undefined;
    const typed = isRecord(tool) && own(tool, "type") === "function";
    if (!typed || typeof name !== "string" || name === "")
      notes.fault({
        path,
        rule: "tool_invalid",
        message: `${path} is ${quoted(tool, 60)}: expected a function with a name.`,
        fix: toolFix,
      });
    else if (parameters !== undefined && !isRecord(parameters))
      notes.fault({
        path: `${path}.parameters`,
        rule: "tool_invalid",
        message: `${path}.parameters is ${typeName(parameters)}: expected a JSON Schema object.`,
        fix: toolFix,
      });
  }
  return present;
}
