/** Which family of models does which task, with which rows and which method. Pure. */
import type { Family, Method, RowKind, Task } from "@fettle/contract";
import { type Decided, decided, refused } from "./refusal.js";

interface Way {
  family: Family;
  task: Task;
  rows: readonly RowKind[];
  methods: readonly Method[];
}

/** Everything that works. The first method of a way is its default for a model that is not small. */
const ways: readonly Way[] = [
  { family: "decoder", task: "chat", rows: ["chat", "pair"], methods: ["lora", "full"] },
  { family: "decoder", task: "preference", rows: ["preference"], methods: ["lora", "full"] },
  { family: "decoder", task: "pretraining", rows: ["text"], methods: ["lora", "full"] },
  { family: "decoder", task: "classification", rows: ["classification"], methods: ["lora", "full", "head"] },
  { family: "encoder", task: "classification", rows: ["classification"], methods: ["lora", "full", "head"] },
  { family: "seq2seq", task: "seq2seq", rows: ["pair"], methods: ["lora", "full"] },
];

const familyWords: Record<Family, string> = {
  decoder: "a decoder",
  encoder: "an encoder",
  seq2seq: "an encoder-decoder",
};
const rowWords: Record<RowKind, string> = {
  chat: "chat rows (messages)",
  pair: "pairs (prompt and completion)",
  classification: "classification rows (text and label)",
  preference: "preference rows (two answers to one conversation)",
  text: "plain texts (text alone)",
};

export interface Wanted {
  model: string;
  family: Family;
  numParameters: number;
  rows: RowKind;
  task: Task | null;
  method: Method | null;
  /** How the tuned model that is gone on from was made; null for a base model. */
  tunedBy: Method | null;
  /** And for which task. */
  tunedFor: Task | null;
}

export interface Chosen {
  task: Task;
  method: Method;
  /** Why, when the user left it open; null when asked for. */
  taskReason: string | null;
  methodReason: string | null;
}

/** Encoders and encoder-decoders below this are tuned whole by default: fast enough, and better than an adapter. */
const smallParameters = 500e6;

export function chooseWay(wanted: Wanted): Decided<Chosen> {
  const { family, rows, task } = wanted;
  const way = ways.find(
    (one) => one.family === family && one.rows.includes(rows) && (task === null || one.task === task),
  );
  if (way === undefined) return refused("incompatible_method", task === null ? "model" : "task", explain(wanted));
  const taskReason =
    task === null ? `${wanted.model} is ${familyWords[family]} and the file holds ${rowWords[rows]}` : null;
  const lost = lostOutput(wanted, way.task);
  if (lost !== null) return refused("incompatible_method", "model", lost);
  if (wanted.method === null) {
    const [method, methodReason] = defaultMethod(wanted, way);
    return decided({ task: way.task, method, taskReason, methodReason });
  }
  if (!way.methods.includes(wanted.method)) {
    const works = way.methods.map((name) => `"${name}"`).join(" or ");
    const why =
      wanted.method === "head"
        ? ` A head is what is put on top for classification; ${way.task} uses the model's own output.`
        : "";
    return refused(
      "incompatible_method",
      "method",
      `The method "${wanted.method}" cannot do the task "${way.task}" with ${wanted.model}.${why} Use the method ${works}.`,
    );
  }
  if (wanted.method === "lora" && wanted.tunedBy === "lora" && needsNewOutput(wanted, way.task))
    return refused(
      "incompatible_method",
      "method",
      `${wanted.model} is a LoRA adapter without the output that the task "${way.task}" needs, and an adapter that is gone on from keeps its parts. Use the method "full", which folds it into its base first, or begin from its base model.`,
    );
  return decided({ task: way.task, method: wanted.method, taskReason, methodReason: null });
}

/** Tasks of one output go on from each other: a model that writes text learns preferences and documents too. */
const outputOf = (task: Task): Task => (task === "preference" || task === "pretraining" ? "chat" : task);

const needsNewOutput = ({ tunedFor }: Wanted, task: Task): boolean =>
  tunedFor !== null && outputOf(tunedFor) !== outputOf(task);

/** A new output can be put on what wrote text; what writes text is gone from what was tuned for another output. */
function lostOutput(wanted: Wanted, task: Task): string | null {
  if (!needsNewOutput(wanted, task) || outputOf(wanted.tunedFor ?? task) === "chat") return null;
  return `${wanted.model} was tuned for the task "${wanted.tunedFor}" and has no output for "${task}". Begin from its base model, or give a file for "${wanted.tunedFor}".`;
}

function defaultMethod(wanted: Wanted, way: Way): [Method, string] {
  const { tunedBy, family, numParameters } = wanted;
  if (tunedBy === "lora" && needsNewOutput(wanted, way.task))
    return ["full", "the task needs a new output, so the adapter to go on from is folded into its base first"];
  if (tunedBy === "lora") return ["lora", "the model to go on from is a LoRA adapter"];
  if (family !== "decoder" && numParameters < smallParameters)
    return ["full", `${millions(numParameters)} parameters are few enough to tune all of them`];
  const [method = "lora"] = way.methods;
  return [
    method,
    family === "decoder"
      ? "an adapter keeps what the model knows and needs a fraction of the memory"
      : `${millions(numParameters)} parameters are many to tune all of them`,
  ];
}

const millions = (count: number): string =>
  count >= 1e9 ? `${(count / 1e9).toFixed(1)} billion` : `${Math.round(count / 1e6)} million`;

/** The nearest combination that works: keep the model when it can use the rows, else keep the rows. */
function explain({ model, family, rows, task }: Wanted): string {
  const sameRows = ways.find((way) => way.family === family && way.rows.includes(rows));
  if (sameRows !== undefined) {
    return `The task "${task}" cannot be done by ${model} (${familyWords[family]}) with ${rowWords[rows]}. Use the task "${sameRows.task}", or leave it out.`;
  }
  const forRows = ways.filter((way) => way.rows.includes(rows) && (task === null || way.task === task));
  const families = [...new Set(forRows.map((way) => familyWords[way.family]))].join(" or ");
  const own = [
    ...new Set(ways.filter((way) => way.family === family).flatMap((way) => way.rows.map((kind) => rowWords[kind]))),
  ].join(" or ");
  const other = families === "" ? "" : ` Use ${families} for these rows, or`;
  return `${model} is ${familyWords[family]}, which cannot learn from ${rowWords[rows]}.${other === "" ? " Use" : `${other} give`} a file of ${own}.`;
}

/** Families that can learn from these rows, for naming a model that would do. */
export const familiesFor = (rows: RowKind): Family[] => [
  ...new Set(ways.filter((way) => way.rows.includes(rows)).map((way) => way.family)),
];
