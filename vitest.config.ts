import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["packages/*/test/**/*.test.ts", "tests/**/*.test.ts"],
    globalSetup: ["packages/server/test/database-setup.ts"],
    testTimeout: 20_000,
    hookTimeout: 60_000,
  },
});
