/**
 * The readers that ask exported models in `npm run test:exports`: llama.cpp, onnxruntime-web, a browser's remote
 * control. Locked in tests/exports, installed in .cache/exports: nobody else needs them.
 */
import { copyFileSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { setUpNode } from "./setup-node.mjs";
import { createProgress } from "./setup-progress.mjs";

/** Throws SetupError. */
export async function setUpExports({ root, progress = createProgress() }) {
  const folder = join(root, ".cache", "exports");
  mkdirSync(folder, { recursive: true });
  for (const name of ["package.json", "package-lock.json", ".npmrc"])
    copyFileSync(join(root, "tests", "exports", name), join(folder, name));
  await setUpNode({ root: folder, progress });
}
