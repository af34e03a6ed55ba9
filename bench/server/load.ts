/** A steady load over kept connections: each sends its next request when the last is answered. */
import { Agent, request } from "node:http";

export interface Shot {
  method: string;
  path: string;
  body?: string;
}
export interface LoadFigures {
  requests_per_second: number;
  p50_ms: number;
  p99_ms: number;
  requests: number;
  connections: number;
  failures: number;
}
export interface LoadOptions {
  url: string;
  key: string;
  seconds: number;
  connections: number;
}

export async function load(shot: Shot, options: LoadOptions): Promise<LoadFigures> {
  const agent = new Agent({ keepAlive: true, maxSockets: options.connections });
  const times: number[] = [];
  let failures = 0;
  const started = performance.now();
  const until = started + options.seconds * 1000;
  const worker = async (): Promise<void> => {
    while (performance.now() < until) {
      const begun = performance.now();
      const status = await send(shot, { ...options, agent });
      if (status !== 200) failures += 1;
      times.push(performance.now() - begun);
    }
  };
  await Promise.all(Array.from({ length: options.connections }, worker));
  const seconds = (performance.now() - started) / 1000;
  agent.destroy();
  times.sort((a, b) => a - b);
  return {
    requests_per_second: Math.round(times.length / seconds),
    p50_ms: quantile(times, 0.5),
    p99_ms: quantile(times, 0.99),
    requests: times.length,
    connections: options.connections,
    failures,
  };
}

const quantile = (sorted: number[], share: number): number =>
  Number((sorted[Math.floor((sorted.length - 1) * share)] ?? Number.NaN).toFixed(2));

/** Resolves with the status once the whole answer is read. */
function send(shot: Shot, { url, key, agent }: { url: string; key: string; agent: Agent }): Promise<number> {
  return new Promise((resolve, reject) => {
    const headers = {
      authorization: `Bearer ${key}`,
      ...(shot.body !== undefined && {
        "content-type": "application/json",
        "content-length": Buffer.byteLength(shot.body),
      }),
    };
    const call = request(url + shot.path, { method: shot.method, agent, headers }, (response) => {
      response.on("end", () => resolve(response.statusCode ?? 0));
      response.on("error", reject);
      response.resume();
    });
    call.on("error", reject);
    call.end(shot.body);
  });
}
