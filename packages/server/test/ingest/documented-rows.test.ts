/** The rows of docs/tasks.md: each is one of its task, and a model can be tuned with it without a word about the task. */
import { taskSchema } from "@fettle/contract";
import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { chooseWay } from "../../src/domain/compatibility.js";
import { readAll } from "./read.js";

const page = readFileSync(new URL("../../../../docs/tasks.md", import.meta.url), "utf8");
const documented = [...page.matchAll(/^\| (\w+) \| `(\{.*?\})` \|/gm)].map(([, task = "", row = ""]) => ({
  task,
  row,
}));

it("documents every task", () => {
  expect(documented.map(({ task }) => task).sort()).toEqual([...taskSchema.options].sort());
});

it.each(documented)("$task is what its row makes of a model", async ({ task, row }) => {
  const { kind, told } = await readAll(row);
  expect(told).toEqual([]);
  if (kind === null) throw new Error("no kind of row");
  const chosen = (["decoder", "encoder", "seq2seq"] as const).map((family) =>
    chooseWay({
      model: "m",
      family,
      numParameters: 1e9,
      rows: kind,
      task: null,
      method: null,
      tunedBy: null,
      tunedFor: null,
      fourBitsLack: null,
    }),
  );
  expect(chosen.flatMap((one) => (one.ok ? [one.value.task] : []))).toContain(task);
});
