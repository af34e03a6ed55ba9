/** Which family of models does which task, with which rows and which method. Pure. */
import type { Family, Method, RowKind, Task } from "@fettle/contract";
import { leavesAdapter, readsVirtualTokens } from "./methods.js";
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
  ...both("multilabel_classification", "multilabel"),
  ...both("regression", "score"),
  ...both("ranking", "ranking"),
  { family: "encoder", task: "token_classification", rows: ["entities"], methods: ["lora", "full", "head"] },
  { family: "encoder", task: "question_answering", rows: ["answers"], methods: ["lora", "full", "head"] },
  { family: "encoder", task: "embedding", rows: ["similarity"], methods: ["lora", "full"] },
];

function both(task: Task, rows: RowKind): Way[] {
  const families: Family[] = ["decoder", "encoder"];
  return families.map((family) => ({ family, task, rows: [rows], methods: ["lora", "full", "head"] }));
}

const familyWords: Record<Family, string> = {
  decoder: "a decoder",
  encoder: "an encoder",
  seq2seq: "an encoder-decoder",
};
const rowWords: Record<RowKind, string> = {
  chat: "chat rows (messages)",
  pair: "pairs (prompt and completion)",
  classification: "classification rows (text and label)",
  multilabel: "rows of several labels (text and labels)",
  score: "scored texts (text and score)",
  ranking: "ranked pairs (chosen_text and rejected_text)",
  entities: "texts with entities (text and entities)",
  answers: "questions about a text (question, context and answers)",
  similarity: "texts that belong together (anchor and positive)",
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
  /** Why no base can be kept in 4 bits on this machine; null: one can, or nobody asks. */
  fourBitsLack: string | null;
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
  if (wanted.method === "qlora" && wanted.fourBitsLack !== null)
    return refused("incompatible_method", "method", noFourBits(wanted.fourBitsLack));
  const methods = methodsOf(way);
  if (!methods.includes(wanted.method)) {
    const works = listed(methods.map((name) => `"${name}"`));
    const why =
      wanted.method === "head"
        ? ` A head is what is put on top for classification; ${way.task} uses the model's own output.`
        : readsVirtualTokens(wanted.method)
          ? " Virtual tokens are read before a text that a decoder goes on with."
          : "";
    return refused(
      "incompatible_method",
      "method",
      `The method "${wanted.method}" cannot do the task "${way.task}" with ${wanted.model}.${why} Use the method ${works}.`,
    );
  }
  const { tunedBy } = wanted;
  if (tunedBy !== null && leavesAdapter(tunedBy) && !goesOn(tunedBy, wanted.method) && !folds(tunedBy, wanted.method))
    return refused(
      "incompatible_method",
      "method",
      `${wanted.model} is an adapter made with the method "${tunedBy}": it can only be gone on from with the same. Use "${tunedBy}", or begin from its base model.`,
    );
  if (tunedBy !== null && leavesAdapter(tunedBy) && goesOn(tunedBy, wanted.method) && needsNewOutput(wanted, way.task))
    return refused(
      "incompatible_method",
      "method",
      `${wanted.model} is an adapter without the output that the task "${way.task}" needs, and an adapter that is gone on from keeps its parts. Use the method "full", which folds it into its base first, or begin from its base model.`,
    );
  return decided({ task: way.task, method: wanted.method, taskReason, methodReason: null });
}

/**
 * Wherever LoRA works, so do its kin; what can be trained whole can be trained in part. Virtual tokens stand before
 * a text that is gone on with.
 */
const methodsOf = ({ family, task, methods }: Way): Method[] => [
  ...methods.flatMap((method) => [method, ...(kin[method] ?? [])]),
  ...(family === "decoder" && (task === "chat" || task === "pretraining") ? (["prompt", "prefix"] as const) : []),
];
const kin: Partial<Record<Method, Method[]>> = { lora: ["rslora", "dora", "ia3", "qlora"], full: ["freeze"] };

const noFourBits = (lack: string): string =>
  `The method "qlora" keeps the base in 4 bits, by an NVIDIA GPU and the package bitsandbytes, but ${lack}. Use the method "lora": it trains the same adapter over the base as it is.`;

/** For the documentation: what each family does, and by which methods; the first is the default. */
export const matrix = ways.map((way) => ({
  family: way.family,
  task: way.task,
  rows: way.rows.map((kind) => rowWords[kind]),
  methods: methodsOf(way),
}));

/** An adapter is one of LoRA's, in however many bits its base lay. */
const goesOn = (tunedBy: Method, method: Method): boolean =>
  [tunedBy, method].every((one) => one === "lora" || one === "qlora") || tunedBy === method;

/** Whether the weights take the adapter in before they are trained. Virtual tokens are no change of a weight. */
const folds = (tunedBy: Method, method: Method): boolean => !readsVirtualTokens(tunedBy) && !leavesAdapter(method);

/** Tasks of one output go on from each other: a model that writes text learns preferences and documents too. */
export const outputOf = (task: Task): Task => (task === "preference" || task === "pretraining" ? "chat" : task);

const needsNewOutput = ({ tunedFor }: Wanted, task: Task): boolean =>
  tunedFor !== null && outputOf(tunedFor) !== outputOf(task);

/** A new output can be put on what wrote text; what writes text is gone from what was tuned for another output. */
function lostOutput(wanted: Wanted, task: Task): string | null {
  if (wanted.tunedBy !== null && readsVirtualTokens(wanted.tunedBy) && needsNewOutput(wanted, task))
    return `${wanted.model} is virtual tokens before a text, and the task "${task}" needs a new output. Begin from its base model.`;
  if (!needsNewOutput(wanted, task) || outputOf(wanted.tunedFor ?? task) === "chat") return null;
  return `${wanted.model} was tuned for the task "${wanted.tunedFor}" and has no output for "${task}". Begin from its base model, or give a file for "${wanted.tunedFor}".`;
}

function defaultMethod(wanted: Wanted, way: Way): [Method, string] {
  const { tunedBy, family, numParameters } = wanted;
  if (tunedBy !== null && leavesAdapter(tunedBy) && !readsVirtualTokens(tunedBy) && needsNewOutput(wanted, way.task))
    return ["full", "the task needs a new output, so the adapter to go on from is folded into its base first"];
  if (tunedBy === "qlora" && wanted.fourBitsLack !== null)
    return ["lora", `the model to go on from is an adapter made with qlora, and ${wanted.fourBitsLack}`];
  if (tunedBy !== null && leavesAdapter(tunedBy))
    return [tunedBy, `the model to go on from is an adapter made with ${tunedBy}`];
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

const listed = (names: string[]): string => `${names.slice(0, -1).join(", ")} or ${names.at(-1) ?? ""}`;

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
  const kinds = [
    ...new Set(ways.filter((way) => way.family === family).flatMap((way) => way.rows.map((kind) => rowWords[kind]))),
  ];
  const own = `${kinds.slice(0, 3).join(" or ")}${kinds.length > 3 ? ", among others" : ""}`;
  const other = families === "" ? "" : ` Use ${families} for these rows, or`;
  return `${model} is ${familyWords[family]}, which cannot learn from ${rowWords[rows]}.${other === "" ? " Use" : `${other} give`} a file of ${own}.`;
}

/** Families that can learn from these rows, for naming a model that would do. */
export const familiesFor = (rows: RowKind): Family[] => [
  ...new Set(ways.filter((way) => way.rows.includes(rows)).map((way) => way.family)),
];
