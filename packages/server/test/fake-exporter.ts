/** Writes a folder of a few bytes where a model would be, and keeps what it was asked. */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Exporter } from "../src/app/ports.js";

export class FakeExporter implements Exporter {
  checkpoints: Parameters<Exporter["checkpoint"]>[0][] = [];
  merges: Parameters<Exporter["merge"]>[0][] = [];
  writes: Parameters<Exporter["write"]>[0][] = [];
  /** Left beside an export. */
  report: unknown = {};
  /** Of a merged model. */
  weights = "base and adapter";
  /** Thrown instead of writing. */
  failure: Error | null = null;
  /** Waited for before writing; a merge that is aborted meanwhile fails. */
  hold: Promise<void> | null = null;

  async checkpoint(input: Parameters<Exporter["checkpoint"]>[0]): Promise<void> {
    this.checkpoints.push(input);
    await this.hold;
    if (this.failure !== null) throw this.failure;
    const config = { peft_type: "LORA", r: 4, lora_alpha: 8, lora_dropout: 0, target_modules: ["q_proj"] };
    await writeModel(input.out, {
      "adapter_config.json": JSON.stringify(config),
      "adapter_model.safetensors": `weights of step ${input.step}`,
    });
  }

  async merge(input: Parameters<Exporter["merge"]>[0], signal: AbortSignal): Promise<void> {
    this.merges.push(input);
    if (this.hold !== null)
      await Promise.race([
        this.hold,
        new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason))),
      ]);
    if (this.failure !== null) throw this.failure;
    await writeModel(input.out, { "config.json": "{}", "model.safetensors": this.weights });
  }

  async write(
    input: Parameters<Exporter["write"]>[0],
    { signal, doing }: Parameters<Exporter["write"]>[1],
  ): Promise<void> {
    this.writes.push(input);
    doing(`writing ${input.format}`);
    if (this.hold !== null)
      await Promise.race([
        this.hold,
        new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason))),
      ]);
    if (this.failure !== null) throw this.failure;
    await writeModel(input.out, { "export.json": JSON.stringify(this.report), "model.gguf": this.weights });
  }

  async close(): Promise<void> {}
}

export async function writeModel(folder: string, files: Record<string, string>): Promise<void> {
  await mkdir(folder, { recursive: true });
  for (const [name, text] of Object.entries({ "fettle.json": "{}", ...files }))
    await writeFile(join(folder, name), text);
}
