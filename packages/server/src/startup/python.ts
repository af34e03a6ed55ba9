/** The interpreter that trains and serves. Checked once at the start: a run that fails an hour later is no place to learn of it. */
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { AppError } from "../domain/error.js";

const run = promisify(execFile);
const oldest = [3, 11] as const;
const checkMs = 20_000;

/** Throws `python_missing` or `python_unsupported`. */
export async function checkPython(path: string): Promise<void> {
  let text: string;
  try {
    ({ stdout: text } = await run(path, ["-c", "import sys; print(*sys.version_info[:3], sep='.')"], {
      timeout: checkMs,
    }));
  } catch (cause) {
    throw new AppError(
      "python_missing",
      `No Python runs at ${path}. Run \`fettle doctor\`: it names what is missing and the command that mends it. Or set FETTLE_PYTHON to a Python ${oldest.join(".")} or newer.`,
      { cause },
    );
  }
  const version = text.trim();
  const [major = 0, minor = 0] = version.split(".").map(Number);
  if (major < oldest[0] || (major === oldest[0] && minor < oldest[1])) {
    throw new AppError(
      "python_unsupported",
      `The Python at ${path} is ${version}: expected ${oldest.join(".")} or newer. Install a newer one, or set FETTLE_PYTHON to it.`,
    );
  }
}
