/** The arrows: main -> adapters -> app -> domain -> contract; client -> contract. Broken ones fail `npm run check`. */
const server = "^packages/server/src";
const adapters = ["http", "store", "blobs", "ingest", "runner", "inference", "catalogue", "background"];

module.exports = {
  forbidden: [
    { name: "no-cycles", severity: "error", from: {}, to: { circular: true } },
    { name: "no-unresolved", severity: "error", from: {}, to: { couldNotResolve: true } },
    {
      name: "contract-knows-nobody",
      severity: "error",
      from: { path: "^packages/contract/src" },
      to: { pathNot: ["^packages/contract/src", "^node_modules/zod/"] },
    },
    {
      name: "client-knows-contract-alone",
      severity: "error",
      from: { path: "^packages/client/src" },
      to: { path: "^(packages/(?!client/|contract/)|trainer/|scripts/)" },
    },
    {
      name: "domain-is-pure",
      comment: "domain knows the contract and itself: no package, no Node module",
      severity: "error",
      from: { path: `${server}/domain` },
      to: { pathNot: [`${server}/domain`, "^packages/contract/src"] },
    },
    {
      name: "app-knows-ports-not-adapters",
      severity: "error",
      from: { path: `${server}/app` },
      to: { path: `${server}/(?!app/|domain/)` },
    },
    ...adapters.map((adapter) => ({
      name: `${adapter}-knows-no-other-adapter`,
      severity: "error",
      from: { path: `${server}/${adapter}/` },
      to: { path: [`${server}/(?!${adapter}/|app/|domain/)`] },
    })),
    {
      name: "source-knows-no-test",
      severity: "error",
      from: { path: "^packages/[^/]+/src" },
      to: { path: "(/test/|^tests/|^bench/|^examples/)" },
    },
  ],
  options: {
    doNotFollow: { path: "node_modules" },
    tsConfig: { fileName: "tsconfig.json" },
    tsPreCompilationDeps: true,
    enhancedResolveOptions: {
      exportsFields: ["exports"],
      conditionNames: ["import", "node", "types", "default"],
    },
  },
};
