export * from "./config.js";
export * from "./errors.js";
export * from "./rows.js";
export * from "./trainer.js";
