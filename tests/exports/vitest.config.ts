import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    root: import.meta.dirname,
    include: ["*.heavy.ts"],
    testTimeout: 120_000,
    hookTimeout: 600_000,
    disableConsoleIntercept: true,
  },
});
