import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { sweepRequest } from "../../packages/client/src/cli/tune.js";
import { Fettle } from "../../packages/client/src/index.js";
import { startSweeper, type Sweeper } from "../../packages/server/src/app/sweeper.js";
import { noTuner } from "../recovery/platform.js";
import { endTrial } from "../../packages/server/test/http/trials.js";
import { eventually } from "../../packages/server/test/store/samples.js";
import { type ClientServer, startClientServer } from "../clients/server.js";
import { type Captured, captured } from "./captured.js";

let server: ClientServer;
let sweeper: Sweeper;
let cli: Captured;
let client: Fettle;
let file: string;
beforeAll(async () => {
  server = await startClientServer();
  sweeper = startSweeper({ ...server.world.deps, tuner: noTuner }, { tickMs: 50 });
  const url = server.baseURL.replace(/\/v1$/, "");
  cli = captured({ FETTLE_URL: url, FETTLE_API_KEY: server.apiKey });
  client = new Fettle({ baseUrl: url, apiKey: server.apiKey });
  file = join(cli.home, "mails.jsonl");
  writeFileSync(file, '{"text":"hi","label":"ham"}\n{"text":"buy","label":"spam"}\n'.repeat(6));
});
afterAll(async () => {
  await sweeper.close();
  cli.close();
  await server.close();
});

const newest = async (before: number) =>
  eventually("the sweep", async () => {
    const { data } = await client.sweeps.list();
    return data.length > before && data[0];
  });
const trial = (id: string, number: number) =>
  eventually(`trial ${number}`, async () => (await client.sweeps.trials(id))[number]);

it("tune follows the sweep to its end: a line a trial on stderr, what it found on stdout", async () => {
  const argv = ["tune", file, "-m", "minilm", "--space", "learning_rate=0.01,0.02", "--search", "grid"];
  const tuning = cli.run([...argv, "--repeats", "0", "--set", "weight_decay=0.1", "--seed", "3"]);
  const { id, hyperparameters, seed } = await newest(0);
  expect([hyperparameters, seed]).toEqual([{ weight_decay: 0.1 }, 3]);
  for (const number of [0, 1, 2]) {
    const { run_id, values } = await trial(id, number);
    await endTrial(server.world, run_id, number === 0 ? 2 : Number(values["learning_rate"]));
  }
  const said = await tuning;
  expect(said.code).toBe(0);
  expect(said.stderr).toContain(`  Sweep ${id} over learning_rate: 3 trials\n`);
  expect(said.stderr).toContain("  trial 0 succeeded, valid_loss 2  automatic values: learning_rate=0.001\n");
  expect(said.stderr).toMatch(/ {2}trial 1 succeeded, valid_loss 0\.0\d {2}learning_rate=0\.0\d\n/);
  expect(said.stderr).toContain("0 repeats cannot tell a gain from chance; ask for 2 or more.");
  expect(said.stdout).toMatch(/^best: trial \d, valid_loss 0\.01\nlearning_rate=0\.01\nft:ftjob-/);

  const shown = await cli.run(["sweeps", id]);
  expect(shown.stdout).toMatch(/^TRIAL +STATUS +VALID_LOSS +learning_rate +SEED +RUN +REASON\n/);
  expect(shown.stdout).toContain(`${id} is succeeded.`);
  expect(cli.document(await cli.run(["sweeps", id, "--json"]))).toMatchObject({ id, trial_list: [{}, {}, {}] });
  expect((await cli.run(["sweeps"])).stdout).toContain(`${id}  succeeded  3/3`);
});

it("tune detaches, is cancelled by its id, and says what is wrong before anything is made", async () => {
  const made = await cli.run(["tune", file, "-m", "minilm", "--trials", "5", "--detach", "--json"]);
  const sweep = cli.document(made) as { id: string; trials: { planned: number } };
  expect([made.code, sweep.trials.planned]).toEqual([0, 5]);
  const interrupt = new AbortController();
  const before = (await client.sweeps.list()).data.length;
  const tuning = cli.run(["tune", file, "-m", "minilm"], { interrupt });
  await newest(before);
  interrupt.abort();
  const detached = await tuning;
  expect([detached.code, detached.stderr]).toEqual([130, expect.stringContaining("goes on without this terminal")]);
  expect((await cli.run(["sweeps", sweep.id, "--cancel", "--json"])).stdout).toContain('"status":"cancelling"');
  const wrong = async (...argv: string[]) => {
    const said = await cli.run(["tune", file, "-m", "minilm", ...argv]);
    return `${said.code} ${said.stderr}`;
  };
  expect(await wrong("--space", "lora_r")).toContain("2 error");
  expect(await wrong("--space", "lora_r")).toContain("expected NAME=1,2,4 or NAME=MIN..MAX");
  expect(await wrong("--space", "suffix=1")).toContain(
    "it cannot be searched; expected one of learning_rate_multiplier",
  );
  expect(await wrong("--space", "lora_r=a..b")).toContain("expected NAME=1,2,4");
  expect(await wrong("--search", "luck")).toContain("expected one of grid, random, bayesian");
  expect(await wrong("--minimize")).toContain("expected --metric NAME");
  expect(await wrong("--money", "3000000000")).toContain("budget.money");
  expect(await wrong("--space", "lora_r=4,4")).toContain("twice");
  expect(await wrong("--space", "lora_r=4", "--space", "lora_r=8")).toContain("--space lora_r is given twice");
  expect(await wrong("--space", "weight_decay=..0.1")).toContain("expected NAME=1,2,4 or NAME=MIN..MAX");
  expect(await wrong("--metric", "f1", "--minimize", "--maximize")).toContain("2 error");
});

it("reads what is searched as it is written", () => {
  const space = ["learning_rate=1e-5..1e-3:log", "warmup_ratio=0..0.2:0.05", "lora_r=4,8", "dropout=null,0.1"];
  space.push("lr_scheduler_type=linear,cosine", "weight_decay=0.001..0.1");
  expect(sweepRequest({ model: "m", space }).space).toEqual({
    learning_rate: { min: 1e-5, max: 1e-3, log: true },
    warmup_ratio: { min: 0, max: 0.2, log: false, step: 0.05 },
    lora_r: { values: [4, 8] },
    dropout: { values: [null, 0.1] },
    lr_scheduler_type: { values: ["linear", "cosine"] },
    weight_decay: { min: 0.001, max: 0.1, log: false },
  });
});
