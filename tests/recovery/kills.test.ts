import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { killWhileTraining } from "./kills.js";
import { seeded } from "./seeded.js";

it("loses and doubles nothing when servers, trainers and the database are killed while runs train", {
  timeout: 120_000,
}, async () => {
  const home = await mkdtemp(join(tmpdir(), "fettle-kills-"));
  const seed = Date.now() % 100_000;
  const report = await killWhileTraining({
    home,
    rounds: 8,
    runs: 2,
    steps: 120,
    stepMs: 60,
    random: seeded(seed),
    targets: ["server", "server", "trainer", "database"],
  });
  expect(report, `seed ${seed}`).toMatchObject({
    runs: 2,
    succeeded: 2,
    events_lost: 0,
    events_doubled: 0,
    models_made: 2,
  });
  // The middle one: other tests share the cores, and one slow start says nothing.
  const ready = [...report.ready_ms].sort((a, b) => a - b);
  expect(ready[Math.floor(ready.length / 2)] ?? 0, `seed ${seed}`).toBeLessThan(5_000);
  await rm(home, { recursive: true, force: true });
});
