import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { Fettle } from "../../packages/client/src/index.js";
import { startSweeper, type Sweeper } from "../../packages/server/src/app/sweeper.js";
import { endTrial } from "../../packages/server/test/http/trials.js";
import { eventually } from "../../packages/server/test/store/samples.js";
import { type ClientServer, startClientServer } from "../clients/server.js";
import { noTuner } from "../recovery/platform.js";
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

const newest = (before: number) =>
  eventually("the cross-validation", async () => {
    const { data } = await client.crossValidations.list();
    return data.length > before && data[0];
  });

it("cross-validate tells each fold on stderr, and on stdout every metric with its interval", async () => {
  const asking = cli.run(["cross-validate", file, "-m", "minilm", "--folds", "3", "--seed", "3", "--epochs", "2"]);
  const { id, seed, hyperparameters } = await newest(0);
  expect([seed, hyperparameters]).toEqual([3, { num_train_epochs: 2 }]);
  for (const at of [0, 1, 2]) {
    const { run_id } = await eventually(`fold ${at + 1}`, async () => (await client.crossValidations.get(id)).runs[at]);
    await endTrial(server.world, run_id, at + 1);
  }
  const said = await asking;
  expect(said.code).toBe(0);
  expect(said.stderr).toContain(`  Cross-validation ${id}: 3 folds\n`);
  for (const fold of [1, 2, 3]) expect(said.stderr).toContain(`  fold ${fold} succeeded, accuracy 0.5\n`);
  expect(said.stderr).toContain("Of all rows: fettle train file-");
  expect(said.stdout).toMatch(/^METRIC +MEAN +95 % INTERVAL +STD +FOLDS\n/);
  expect(said.stdout).toMatch(/valid_loss +2 +-0\.4843 to 4\.484 +1 +3\n/);
  expect(said.stdout).toContain("accuracy is 0.5 on average over 3 folds");

  const shown = await cli.run(["cross-validations", id]);
  expect(shown.stdout).toMatch(/^FOLD +STATUS +SCORE +RUN +REASON\n1 +succeeded +accuracy 0\.5 +ftjob-/);
  expect(shown.stdout).toContain(`${id} is succeeded.`);
  expect(cli.document(await cli.run(["cross-validations", id, "--json"]))).toMatchObject({ id, runs: [{}, {}, {}] });
  expect((await cli.run(["cross-validations"])).stdout).toMatch(
    new RegExp(`${id} +succeeded +3/3 +minilm .*accuracy 0.5`),
  );
  const followed: string[] = [];
  for await (const now of client.crossValidations.follow(id)) followed.push(now.status);
  expect(followed).toEqual(["succeeded"]);
});

it("cross-validate detaches, is cancelled by its id, and says what is wrong before anything is made", async () => {
  const made = await cli.run(["cross-validate", file, "-m", "minilm", "--detach", "--json", "--minutes", "5"]);
  const one = cli.document(made) as { id: string; folds: number; budget: object };
  expect([made.code, one.folds, one.budget]).toEqual([0, 5, { minutes: 5 }]);
  const interrupt = new AbortController();
  const before = (await client.crossValidations.list()).data.length;
  const asking = cli.run(["cross-validate", file, "-m", "minilm"], { interrupt });
  await newest(before);
  interrupt.abort();
  const detached = await asking;
  expect([detached.code, detached.stderr]).toEqual([130, expect.stringContaining("goes on without this terminal")]);
  expect((await cli.run(["cross-validations", one.id, "--cancel", "--json"])).stdout).toContain(
    '"status":"cancelling"',
  );
  expect(await cli.run(["cross-validations", "--cancel"])).toMatchObject({
    code: 2,
    stderr: expect.stringContaining("--cancel needs a cross-validation"),
  });
  const wrong = await cli.run(["cross-validate", file, "-m", "minilm", "--folds", "1"]);
  expect([wrong.code, wrong.stderr]).toEqual([1, expect.stringContaining("folds")]);
  expect((await cli.run(["cross-validate", file, "-m", "minilm", "--validation", file])).code).toBe(2);
});
