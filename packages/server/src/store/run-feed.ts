/** Tells listeners in this process which runs changed, in any process, by LISTEN/NOTIFY on a connection of its own. */
import pg from "pg";

export interface RunFeed {
  listen(fn: (runId: string) => void): () => void;
  close(): Promise<void>;
}

/** A broken connection may be noticed late: changes of this long before are told again too. */
const lossNoticedWithinMs = 30_000;

/** Connects with the first listener. After a lost connection, runs that changed meanwhile are told again. */
export function openRunFeed(url: string): RunFeed {
  const feed = new Feed(url);
  return { listen: (fn) => feed.listen(fn), close: () => feed.close() };
}

class Feed {
  private readonly listeners = new Set<(runId: string) => void>();
  private client: pg.Client | null = null;
  private connecting: Promise<void> | null = null;
  private retry: NodeJS.Timeout | null = null;
  /** Monotonic time since when changes may have gone untold; null while connected. */
  private deafSince: number | null = null;
  private closed = false;

  constructor(private readonly url: string) {}

  listen(fn: (runId: string) => void): () => void {
    this.listeners.add(fn);
    if (!this.client) this.deafSince ??= performance.now();
    this.connectSoon(0);
    return () => this.listeners.delete(fn);
  }

  async close(): Promise<void> {
    this.closed = true;
    if (this.retry) clearTimeout(this.retry);
    await this.connecting;
    await this.client?.end().catch(() => undefined);
    this.client = null;
  }

  private tell(runId: string): void {
    for (const listener of this.listeners) listener(runId);
  }

  private connectSoon(delayMs: number): void {
    if (this.closed || this.client || this.connecting || this.retry) return;
    this.retry = setTimeout(() => {
      this.retry = null;
      this.connecting = this.connect().finally(() => {
        this.connecting = null;
        if (!this.client) this.connectSoon(Math.min(5_000, Math.max(100, delayMs * 2)));
      });
    }, delayMs);
    this.retry.unref();
  }

  private async connect(): Promise<void> {
    const client = new pg.Client({
      connectionString: this.url,
      application_name: "fettle-feed",
      keepAlive: true,
      connectionTimeoutMillis: 10_000,
    });
    client.on("error", () => this.lose(client));
    client.on("end", () => this.lose(client));
    client.on("notification", (note) => this.tell(note.payload ?? ""));
    try {
      await client.connect();
      await client.query("listen fettle_runs");
      const deafMs = performance.now() - (this.deafSince ?? performance.now());
      const missed = await client.query<{ id: string }>(
        "select id from fettle.runs where updated_at > clock_timestamp() - $1 * interval '1 millisecond'",
        [deafMs + lossNoticedWithinMs],
      );
      if (this.closed) throw new Error("closed while connecting");
      this.client = client;
      this.deafSince = null;
      for (const row of missed.rows) this.tell(row.id);
    } catch {
      await client.end().catch(() => undefined);
    }
  }

  private lose(client: pg.Client): void {
    if (this.client !== client) return;
    this.client = null;
    this.deafSince = performance.now();
    this.connectSoon(100);
  }
}
