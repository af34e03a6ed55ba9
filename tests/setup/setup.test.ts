import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { type Clone, clone } from "./clone.js";

let fresh: Clone;
afterEach(() => fresh.remove());

async function until(isTrue: () => boolean): Promise<void> {
  for (const end = Date.now() + 15_000; !isTrue(); await new Promise((resolve) => setImmediate(resolve))) {
    if (Date.now() > end) throw new Error("It did not come about within 15 s.");
  }
}
/** What was done, without the paths. */
const done = (): string[] =>
  fresh
    .calls()
    .filter((line) => !line.includes("-c import sys"))
    .map((line) => /-m venv|requirements[-a-z]*\.lock|compileall|npm \w+/.exec(line)?.[0] ?? line);

const howToInstall =
  "Debian or Ubuntu: `sudo apt-get install python3.11 python3.11-venv`; Fedora: `sudo dnf install python3.11`; macOS: `brew install python@3.13`.";
const looked = "looked for python3.13, python3.12, python3.11, python3, python on PATH";

describe("the Python to use", () => {
  async function refusal(env: Record<string, string> = {}): Promise<{ code: string; message: string }> {
    const ended = await fresh.setUp(["--json"], env);
    expect(ended.code).toBe(1);
    const { error } = JSON.parse(ended.stdout) as { error: { code: string; message: string } };
    expect(ended.stderr).toBe(`error (${error.code}): ${error.message}\n`);
    expect(existsSync(join(fresh.folder, ".venv"))).toBe(false);
    return error;
  }

  it("none: what was looked for, what is expected, how to get it", async () => {
    fresh = clone();
    expect(await refusal()).toEqual({
      code: "python_missing",
      message: `No Python was found: ${looked}. Fettle needs Python 3.11 to 3.14 to train and run models. ${howToInstall} Or set FETTLE_PYTHON to the path of one.`,
    });
  });

  it("too old: which, where, what is expected", async () => {
    fresh = clone();
    fresh.python("python3", { version: "3.9.2" });
    expect(await refusal()).toEqual({
      code: "python_unsupported",
      message: `The Python found is too old: 3.9.2 at ${fresh.bin}/python3 (${looked}). Fettle needs Python 3.11 to 3.14. ${howToInstall} Or set FETTLE_PYTHON to the path of one.`,
    });
  });

  it("too new, for which torch has no wheels", async () => {
    fresh = clone();
    fresh.python("python3", { version: "3.15.0" });
    expect((await refusal()).message).toMatch(/^The Python found is too new: 3\.15\.0 at /);
  });

  it("FETTLE_PYTHON is taken alone, and named when it is not there", async () => {
    fresh = clone();
    fresh.python("python3");
    expect(await refusal({ FETTLE_PYTHON: "/no/python" })).toEqual({
      code: "python_missing",
      message:
        "No Python was found: FETTLE_PYTHON names /no/python, and no program that answers as Python is there. Fettle needs Python 3.11 to 3.14. Point FETTLE_PYTHON at one, or unset it to search PATH.",
    });
  });

  it("one that cannot make environments names the package that is missing", async () => {
    fresh = clone();
    fresh.python("python3", { venv: false });
    expect((await refusal()).message).toBe(
      `Python 3.12.4 at ${fresh.bin}/python3 cannot make virtual environments: its module ensurepip is missing. Debian or Ubuntu: \`sudo apt-get install python3.12-venv\`. Or point FETTLE_PYTHON at another Python 3.11 to 3.14.`,
    );
  });

  it("a fit one is found behind an old python3", async () => {
    fresh = clone();
    fresh.python("python3", { version: "3.9.2" });
    fresh.python("python3.11", { version: "3.11.9" });
    const ended = await fresh.setUp(["--json"]);
    expect(ended).toMatchObject({ code: 0 });
    expect(ended.stderr).toContain("Python 3.11.9 environment: ready in ");
  });
});

describe("the environment", () => {
  it("is made once; the second run sees its stamps, starts nothing and takes no half second", async () => {
    fresh = clone();
    fresh.python("python3");
    // As on a machine with a GPU: the CPU build of torch is not asked for.
    fresh.program("nvidia-smi", []);
    const first = await fresh.setUp(["--json"]);
    expect(JSON.parse(first.stdout)).toMatchObject({
      changed: true,
      profile: "runtime",
      python: join(fresh.folder, ".venv", "bin", "python"),
    });
    expect(done()).toEqual(["-m venv", "requirements.lock", "compileall"]);
    expect(fresh.calls().find((line) => line.includes("requirements.lock"))).toMatch(
      /-m pip install --require-hashes --no-deps --only-binary :all: /,
    );
    const before = fresh.calls().length;
    const second = await fresh.setUp(["--json"]);
    expect(JSON.parse(second.stdout)).toMatchObject({ changed: false });
    expect(second.stderr).toBe("");
    expect(fresh.calls()).toHaveLength(before);
    expect(JSON.parse(second.stdout).seconds).toBeLessThan(0.5);
  });

  it("the test profile adds what tests need, and a changed lock file is installed again", async () => {
    fresh = clone();
    fresh.python("python3");
    fresh.program("nvidia-smi", []);
    await fresh.setUp();
    await fresh.setUp(["--profile", "test"]);
    expect(done().slice(3)).toEqual(["requirements-onnx.lock", "requirements-dev.lock", "compileall"]);
    writeFileSync(join(fresh.folder, "trainer", "requirements.lock"), "one==2\n");
    expect(await fresh.setUp(["--profile", "test"])).toMatchObject({ code: 0 });
    expect(done().slice(6)).toEqual(["requirements.lock", "compileall"]);
  });

  it.each(["onnx", "qlora", "liger"])(
    "what %s needs comes when asked for, and is kept up to date from then on",
    async (name) => {
      fresh = clone();
      fresh.python("python3");
      fresh.program("nvidia-smi", []);
      await fresh.setUp();
      await fresh.setUp([`--${name}`]);
      expect(done().slice(3)).toEqual([`requirements-${name}.lock`, "compileall"]);
      await fresh.setUp();
      expect(done()).toHaveLength(5);
      writeFileSync(join(fresh.folder, "trainer", `requirements-${name}.lock`), "one==2\n");
      expect(await fresh.setUp()).toMatchObject({ code: 0 });
      expect(done().slice(5)).toEqual([`requirements-${name}.lock`, "compileall"]);
    },
  );

  // With a GPU's device file set-up rightly takes the CUDA build, and PATH cannot hide that file.
  it.runIf(process.platform === "linux" && !existsSync("/dev/nvidiactl"))(
    "torch's CPU build is tried first where there is no GPU, and need not exist",
    async () => {
      fresh = clone();
      fresh.python("python3");
      const ended = await fresh.setUp();
      expect(ended).toMatchObject({ code: 0 });
      expect(ended.stderr).toContain("torch for CPU: none in reach\n");
      expect(done()).toEqual(["-m venv", "requirements-cpu.lock", "requirements.lock", "compileall"]);
    },
  );

  it("a CUDA build of torch brings its libraries", async () => {
    fresh = clone();
    fresh.python("python3", { cuda: "13.0" });
    fresh.program("nvidia-smi", []);
    await fresh.setUp();
    expect(done()).toEqual(["-m venv", "requirements.lock", "requirements-cuda.lock", "compileall"]);
  });

  it("killed in the middle, it is made anew by the next run, which takes the dead one's lock over", async () => {
    fresh = clone();
    fresh.python("python3");
    fresh.program("nvidia-smi", []);
    const { child, ended } = fresh.start([], { PIP_HANGS: "1" });
    await until(() => done().includes("requirements.lock"));
    process.kill(-(child.pid ?? 0), "SIGKILL");
    await ended;
    expect(existsSync(join(fresh.folder, ".cache", "setup.lock"))).toBe(true);
    const second = await fresh.setUp();
    expect(second).toMatchObject({ code: 0 });
    expect(done()).toEqual(["-m venv", "requirements.lock", "-m venv", "requirements.lock", "compileall"]);
    expect(existsSync(join(fresh.folder, ".cache", "setup.lock"))).toBe(false);
  });

  it("Ctrl-C ends pip too and says how to go on, with 130", async () => {
    fresh = clone();
    fresh.python("python3");
    fresh.program("nvidia-smi", []);
    const { child, ended } = fresh.start(["--json"], { PIP_HANGS: "1" });
    await until(() => done().includes("requirements.lock"));
    child.kill("SIGINT");
    expect(await ended).toMatchObject({
      code: 130,
      stderr: expect.stringContaining("Set-up was interrupted. Run the same command again: it goes on from here."),
    });
  });

  it("several at once take turns: one makes it, the others find it made", async () => {
    fresh = clone();
    fresh.python("python3");
    fresh.program("nvidia-smi", []);
    const all = await Promise.all([fresh.setUp(["--json"]), fresh.setUp(["--json"]), fresh.setUp(["--json"])]);
    expect(all.map((one) => one.code)).toEqual([0, 0, 0]);
    expect(all.filter((one) => JSON.parse(one.stdout).changed)).toHaveLength(1);
    expect(done()).toEqual(["-m venv", "requirements.lock", "compileall"]);
  });

  it("a failing pip is told with its last lines and what to do, as setup_failed", async () => {
    fresh = clone();
    fresh.python("python3");
    fresh.program("nvidia-smi", []);
    const ended = await fresh.setUp(["--json"], { PIP_FAILS: "1" });
    expect(ended.code).toBe(1);
    const { error } = JSON.parse(ended.stdout);
    expect(error.code).toBe("setup_failed");
    expect(error.message).toMatch(
      /ended with exit code 1:\nERROR: the network is gone\nCheck the network and pip's own settings \(`pip config list`\), then run the same command again: finished downloads are kept\.$/,
    );
  });

  it("a link named .venv is the user's own and stays", async () => {
    fresh = clone();
    mkdirSync(join(fresh.folder, "own"));
    symlinkSync(join(fresh.folder, "own"), join(fresh.folder, ".venv"));
    expect(await fresh.setUp()).toMatchObject({ code: 0, stderr: "" });
    expect(fresh.calls()).toEqual([]);
  });
});

describe("Node packages", () => {
  const refused =
    'echo "npm error code EUSAGE"; echo "npm error Missing: @biomejs/cli-win32-x64@2.6.8 from lock file"; exit 1';
  const install = (integrity: string): string =>
    `/bin/mkdir -p node_modules && echo '{"packages":{"node_modules/one":{"version":"1.0.0","integrity":"${integrity}"}}}' > node_modules/.package-lock.json`;
  const npm = (ci: string, other: string): void =>
    fresh.program("npm", [`case "$1" in ci) ${ci} ;; *) ${other} ;; esac`]);

  it("come from npm ci, once", async () => {
    fresh = clone({ npm: true });
    npm(install("sha512-a"), "exit 1");
    await fresh.setUp(["--profile", "client"]);
    expect(await fresh.setUp(["--profile", "client"])).toMatchObject({ code: 0, stderr: "" });
    expect(done()).toEqual(["npm ci"]);
  });

  it("come from npm install where npm ci refuses a good lock, and the lock stays as it is", async () => {
    fresh = clone({ npm: true });
    const lock = readFileSync(join(fresh.folder, "package-lock.json"), "utf8");
    npm(refused, install("sha512-a"));
    expect(await fresh.setUp(["--profile", "client"])).toMatchObject({ code: 0 });
    expect(fresh.calls().at(-1)).toBe("npm install --no-save --no-audit --no-fund --no-progress --loglevel=error");
    expect(readFileSync(join(fresh.folder, "package-lock.json"), "utf8")).toBe(lock);
  });

  it("come from npm install also under `npm run --silent`, where npm gives its reason only when told to", async () => {
    fresh = clone({ npm: true });
    const loud = `case "$*" in *--loglevel=error*) ${refused.replace("; exit 1", "")} ;; esac; exit 1`;
    npm(loud, install("sha512-a"));
    expect(await fresh.setUp(["--profile", "client"], { npm_config_loglevel: "silent" })).toMatchObject({ code: 0 });
    expect(done()).toEqual(["npm ci", "npm install"]);
  });

  it("are refused when a hash is not the lock's", async () => {
    fresh = clone({ npm: true });
    npm(refused, install("sha512-b"));
    const ended = await fresh.setUp(["--profile", "client", "--json"]);
    expect(JSON.parse(ended.stdout).error).toEqual({
      code: "setup_failed",
      message:
        "node_modules/one is 1.0.0 (sha512-b), but package-lock.json names 1.0.0 (sha512-a). Delete node_modules and run the same command again; if it stays, package.json and the lock disagree.",
    });
  });

  it("a changed lock is put back and told", async () => {
    fresh = clone({ npm: true });
    const lock = readFileSync(join(fresh.folder, "package-lock.json"), "utf8");
    npm(refused, `${install("sha512-a")}; echo changed > package-lock.json`);
    expect(await fresh.setUp(["--profile", "client"])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("package.json and the lock disagree"),
    });
    expect(readFileSync(join(fresh.folder, "package-lock.json"), "utf8")).toBe(lock);
  });

  it("any other failure of npm ci is told, not worked around", async () => {
    fresh = clone({ npm: true });
    npm('echo "npm error code EAI_AGAIN"; exit 1', "exit 0");
    const ended = await fresh.setUp(["--profile", "client"]);
    expect(ended).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("`npm ci` ended with exit code 1:\nnpm error code EAI_AGAIN\n"),
    });
    expect(done()).toEqual(["npm ci"]);
  });
});

it("an old Node is told its version, its place and what is expected", () => {
  fresh = clone();
  const code = `import(${JSON.stringify(join(fresh.folder, "scripts", "setup-node.mjs"))}).then((node) => { try { node.checkNode("18.20.1") } catch (error) { console.log(error.code + "|" + error.message) } })`;
  const [name, message] = execFileSync(process.execPath, ["-e", code], { encoding: "utf8" }).trim().split("|");
  expect(name).toBe("node_unsupported");
  expect(message).toBe(
    `This Node is too old: 18.20.1 at ${process.execPath}. Fettle needs Node 20.19 or newer; 24 is recommended. Install it (\`nvm install 24\`, \`brew install node@24\`, or your distribution's package), then run the same command again.`,
  );
});
