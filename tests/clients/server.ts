/** The real server surface on a real socket, for clients that know nothing of us. */
import { type Listening, listen } from "../../packages/server/src/http/listen.js";
import { createWorld, type World } from "../../packages/server/test/http/world.js";
import { sampleEvent } from "../../packages/server/test/store/samples.js";

export interface ClientServer {
  world: World;
  /** With `/v1`, as clients want it. */
  baseURL: string;
  apiKey: string;
  /** Requests seen: method, path and headers, in order. */
  seen: { method: string; path: string; headers: Record<string, string> }[];
  /** Cuts the connection of the next requests of this method after their work is done, as a lost answer does. */
  loseAnswers(method: string, path: string, times: number): void;
  /** Takes a run to its end as a trainer would: events, a checkpoint, a model. Gives the model's name. */
  finish(runId: string): Promise<string>;
  close(): Promise<void>;
}

export async function startClientServer(): Promise<ClientServer> {
  const world = await createWorld();
  const listening: Listening = await listen({ host: "127.0.0.1", port: 0 });
  const seen: ClientServer["seen"] = [];
  const lost = new Map<string, number>();
  const { fetch } = world.router.app;
  const answer: typeof fetch = async (request, bindings, context) => {
    const path = new URL(request.url).pathname;
    seen.push({
      method: request.method,
      path: request.url.slice(new URL(request.url).origin.length),
      headers: Object.fromEntries(request.headers),
    });
    const response = await fetch(request, bindings, context);
    const left = lost.get(`${request.method} ${path}`) ?? 0;
    if (left === 0) return response;
    lost.set(`${request.method} ${path}`, left - 1);
    await response.text();
    return Response.json(
      { error: { message: "lost", type: "server_error", param: null, code: null } },
      { status: 500 },
    );
  };
  listening.open({ ...world.router, app: Object.assign(Object.create(world.router.app), { fetch: answer }) });
  return {
    world,
    baseURL: `${listening.url}/v1`,
    apiKey: world.key,
    seen,
    loseAnswers: (method, path, times) => void lost.set(`${method} ${path}`, times),
    finish: (runId) => finish(world, runId),
    close: async () => {
      await listening.close(100);
      await world.close();
    },
  };
}

async function finish({ deps }: World, runId: string): Promise<string> {
  const { runs } = deps.store;
  const now = deps.clock.now();
  await runs.update(runId, (run) => ({ run: { ...run, status: "running", startedAt: now }, events: [] }));
  const lease = await runs.acquire(runId, "client-test", { ttlMs: 60_000 });
  const run = await runs.get("default", runId);
  if (lease === null || run === null) throw new Error(`cannot lease ${runId}`);
  const name = `ft:${run.baseModel}:default:${run.request.suffix ?? ""}:${runId.slice(-8)}`;
  await runs.ingest(lease, {
    events: Array.from({ length: 25 }, (_, index) =>
      sampleEvent(`step:${index + 1}`, {
        type: "metrics",
        message: `Step ${index + 1}/25: training loss=${(1 / (index + 1)).toFixed(2)}`,
        data: { step: index + 1, train_loss: 1 / (index + 1) },
        createdAt: now,
      }),
    ),
    offset: 100,
    checkpoints: [1, 2].map((step) => ({
      id: `ftckpt_${runId.slice(-8)}_${step}`,
      runId,
      step,
      modelName: `${name}:ckpt-step-${step}`,
      path: `checkpoints/${step}`,
      metrics: { train_loss: 0.5 },
      createdAt: now,
    })),
    model: {
      name,
      projectId: "default",
      runId,
      baseModel: run.baseModel,
      task: "chat",
      method: "lora",
      artefact: `runs/${runId}/artefact`,
      artefactSha256: "0".repeat(64),
      labels: null,
      createdAt: now,
    },
    change: (before) => ({
      ...before,
      status: "succeeded",
      fineTunedModel: name,
      trainedTokens: 1234,
      memory: {
        predicted: { process: 1e9, weights: 3e8, gradients: 0, moments: 0, activations: 0, logits: 0, products: 0 },
        peakBytes: 1.2e9,
      },
      finishedAt: now,
    }),
  });
  return name;
}
