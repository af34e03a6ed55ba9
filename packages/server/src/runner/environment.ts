/** Of the server's environment only this reaches a trainer: API keys, hub tokens and database addresses stay out. */
const passedOn = [
  "PATH",
  "HOME",
  "LANG",
  "LC_ALL",
  "LC_CTYPE",
  "TMPDIR",
  "TZ",
  "LD_LIBRARY_PATH",
  "DYLD_LIBRARY_PATH",
  "CUDA_VISIBLE_DEVICES",
  "CUDA_HOME",
  "NVIDIA_VISIBLE_DEVICES",
];

/** The environment of a trainer that computes with so many threads and fetches nothing. */
export function trainerEnvironment(
  environment: Readonly<Record<string, string | undefined>>,
  numThreads: number,
): Record<string, string> {
  const kept = passedOn.flatMap((name) => {
    const value = environment[name];
    return value === undefined ? [] : [[name, value] as const];
  });
  return {
    ...Object.fromEntries(kept),
    HF_HUB_OFFLINE: "1",
    TRANSFORMERS_OFFLINE: "1",
    HF_HUB_DISABLE_TELEMETRY: "1",
    TOKENIZERS_PARALLELISM: "false",
    PYTHONUNBUFFERED: "1",
    OMP_NUM_THREADS: String(numThreads),
    MKL_NUM_THREADS: String(numThreads),
  };
}
