/** House rules that need TypeScript's syntax tree. Each returns a list of `path:line what is wrong`. */
import ts from "typescript";

export const limits = { fileLines: 400, functionLines: 80, parameters: 3 };

/** Lines with at least one token: blank lines and comments do not count. */
function codeLines(source, node) {
  const lines = new Set();
  const visit = (child) => {
    if (ts.isJSDoc(child)) return;
    if (child.getChildCount(source) === 0) {
      const start = source.getLineAndCharacterOfPosition(child.getStart(source)).line;
      const end = source.getLineAndCharacterOfPosition(child.getEnd()).line;
      if (child.getEnd() > child.getStart(source)) for (let line = start; line <= end; line += 1) lines.add(line);
    } else for (const grandchild of child.getChildren(source)) visit(grandchild);
  };
  visit(node);
  return lines.size;
}

const isFunction = (node) =>
  ts.isFunctionDeclaration(node) ||
  ts.isFunctionExpression(node) ||
  ts.isArrowFunction(node) ||
  ts.isMethodDeclaration(node) ||
  ts.isConstructorDeclaration(node);

/** A callback's signature belongs to the function it is handed to. */
const isCallback = (node) => ts.isCallExpression(node.parent) || ts.isNewExpression(node.parent);

function nameOf(node, source) {
  if (node.name !== undefined) return node.name.getText(source);
  if (ts.isVariableDeclaration(node.parent)) return node.parent.name.getText(source);
  return ts.isConstructorDeclaration(node) ? "constructor" : "function";
}

export function parse(file) {
  const source = ts.createSourceFile(file.path, file.text, ts.ScriptTarget.Latest, true);
  const nodes = [];
  const collect = (node) => {
    nodes.push(node);
    ts.forEachChild(node, collect);
  };
  collect(source);
  return { file, source, nodes };
}

export function sizes({ file, source, nodes }) {
  const found = [];
  const lines = codeLines(source, source);
  if (lines > limits.fileLines)
    found.push(`${file.path}:1 has ${lines} lines of code, at most ${limits.fileLines}: split it by noun`);
  for (const node of nodes.filter(isFunction)) {
    if (node.body === undefined) continue;
    const name = nameOf(node, source);
    const length = codeLines(source, node);
    // A suite is a list of tests, each measured by itself.
    const suite = file.isTest && /^\s*(describe|it|test)(\.\w+)*\(/m.test(node.body.getText(source));
    if (length > limits.functionLines && !suite)
      found.push(file.at(node.getStart(source), `${name} has ${length} lines, at most ${limits.functionLines}`));
    if (node.parameters.length > limits.parameters && !isCallback(node))
      found.push(
        file.at(
          node.getStart(source),
          `${name} takes ${node.parameters.length} parameters, at most ${limits.parameters}, then one object`,
        ),
      );
  }
  return found;
}

const environmentReaders = /^(packages\/[^/]+\/src\/(cli\/)?(config|environment)\.ts|scripts\/|bench\/)/;

/** `process.env` anywhere but in the one file of a package that reads the environment, in tests and in scripts. */
export function environment({ file, source, nodes }) {
  if (file.isTest || environmentReaders.test(file.path) || file.name === "vitest.config.ts") return [];
  return nodes
    .filter((node) => ts.isPropertyAccessExpression(node) && node.getText(source) === "process.env")
    .map((node) => file.at(node.getStart(source), "reads process.env: only config.ts may, hand the value in"));
}

/** Names of one import declaration by which a shell or an interpreter could be reached. */
function importedDangers({ node, file, source }) {
  const from = node.moduleSpecifier.text.replace(/^node:/, "");
  const where = node.getStart(source);
  if (from === "vm") return [file.at(where, "imports vm, which runs text as code")];
  const names = node.importClause?.namedBindings;
  if (from !== "child_process" || names === undefined || !ts.isNamedImports(names)) return [];
  const shells = names.elements.filter((one) => ["exec", "execSync"].includes((one.propertyName ?? one.name).text));
  return shells.map(() => file.at(where, "imports child_process.exec: a shell parses the text; use execFile or spawn"));
}

/** eval in all its spellings, and shells that parse a string. */
export function calls({ file, source, nodes }) {
  const isProcesses = (node) =>
    ts.isImportDeclaration(node) && /^(node:)?child_process$/.test(node.moduleSpecifier.text);
  const names = nodes.filter(isProcesses).map((node) => node.importClause?.namedBindings ?? node.importClause);
  const processes = new Set(names.map((node) => node?.name?.text).filter((name) => name !== undefined));
  const danger = (node) => {
    const at = (message) => [file.at(node.getStart(source), message)];
    if (ts.isImportDeclaration(node)) return importedDangers({ node, file, source });
    if (ts.isNewExpression(node) && node.expression.getText(source) === "Function") return at("new Function is eval");
    if (ts.isPropertyAssignment(node) && node.name.getText(source) === "shell")
      return node.initializer.kind === ts.SyntaxKind.FalseKeyword
        ? []
        : at("shell: lets a shell parse the text; pass arguments as a list");
    if (!ts.isCallExpression(node)) return [];
    const callee = node.expression.getText(source);
    if (callee === "eval" || callee === "globalThis.eval") return at("eval runs text as code");
    const [owner, method] = callee.split(".");
    return processes.has(owner) && /^exec(Sync)?$/.test(method ?? "")
      ? at("child_process.exec: a shell parses the text; use execFile or spawn")
      : [];
  };
  return nodes.flatMap(danger);
}

/** domain/ neither asks the clock, nor rolls dice, nor touches the world; contract/ holds schemas alone. */
export function purity({ file, source, nodes }) {
  if (!/^packages\/(server\/src\/domain|contract\/src)\//.test(file.path)) return [];
  const found = [];
  for (const node of nodes) {
    const text = ts.isPropertyAccessExpression(node) ? node.getText(source) : "";
    if (/^(Date\.now|Math\.random|performance\.now|crypto\.\w+|process\.\w+|globalThis\.\w+)$/.test(text))
      found.push(file.at(node.getStart(source), `${text} in a pure file: hand the value in`));
    if (ts.isNewExpression(node) && node.expression.getText(source) === "Date" && !node.arguments?.length)
      found.push(file.at(node.getStart(source), "new Date() in a pure file: hand the time in"));
    if (
      ts.isCallExpression(node) &&
      /^(fetch|setTimeout|setInterval|queueMicrotask|require)$/.test(node.expression.getText(source))
    )
      found.push(file.at(node.getStart(source), `${node.expression.getText(source)} in a pure file: I/O is handed in`));
    if (ts.isImportDeclaration(node) && /^(node:|fs|path|os|crypto|pg|hono|pino)/.test(node.moduleSpecifier.text))
      found.push(file.at(node.getStart(source), `imports ${node.moduleSpecifier.text} in a pure file`));
    if (ts.isAwaitExpression(node))
      found.push(file.at(node.getStart(source), "await in a pure file: nothing here waits"));
  }
  return found;
}

const inLoop = (node) => {
  for (let up = node.parent; up !== undefined; up = up.parent) {
    if (ts.isIterationStatement(up, false)) return true;
    if (ts.isFunctionLike(up) && !ts.isNewExpression(up.parent)) return false;
  }
  return false;
};

/** Tests: no module mocks, no sleep outside a loop that polls, nothing skipped without a word why. */
export function tests({ file, source, nodes }) {
  if (!file.isTest) return [];
  const found = [];
  for (const node of nodes) {
    if (!ts.isCallExpression(node) && !ts.isNewExpression(node)) continue;
    const callee = node.expression.getText(source);
    const where = node.getStart(source);
    if (/^(vi|jest)\.(mock|doMock|unstable_mockModule)$/.test(callee))
      found.push(file.at(where, `${callee} replaces a module: hand a fake of the port in instead`));
    if (/^(it|test|describe|suite)\.only$/.test(callee))
      found.push(file.at(where, `${callee} leaves the other tests out`));
    if (/^(it|test|describe|suite)\.(skip|todo)$/.test(callee))
      found.push(file.at(where, `${callee}: use skipIf with a condition and a comment why`));
    if (/\.(skipIf|runIf)$/.test(callee) && !commentAbove(file, where))
      found.push(file.at(where, `${callee} without a comment on the line above that says why`));
    if (isSleep(node, source) && !inLoop(node))
      found.push(file.at(where, "sleeps: poll a condition with a deadline, or inject the clock"));
  }
  return found;
}

function commentAbove(file, offset) {
  const lines = file.text.split("\n");
  const line = file.lineOf(offset) - 1;
  return /^\s*(\/\/|\*|\/\*)/.test(lines[line - 1] ?? "") || /\/\/ \w/.test(lines[line]);
}

/** `await new Promise((done) => setTimeout(done, ms))` or `await setTimeout(ms)`. */
function isSleep(node, source) {
  if (!ts.isAwaitExpression(node.parent)) return false;
  const callee = node.expression.getText(source);
  if (ts.isCallExpression(node)) return /^(sleep|delay|setTimeout|timers\.setTimeout)$/.test(callee);
  return (
    callee === "Promise" && /^\(?\w*\)?\s*=>\s*(void )?setTimeout\(/.test(node.arguments?.[0]?.getText(source) ?? "")
  );
}

const statuses = new Set(["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]);

/** A run changes state in domain/job.ts alone: no `{ ...run, status: "…" }` and no `run.status = …` elsewhere. */
export function state({ file, source, nodes }) {
  if (!file.path.startsWith("packages/server/src/") || file.path.endsWith("domain/job.ts")) return [];
  const found = [];
  for (const node of nodes) {
    if (ts.isObjectLiteralExpression(node) && node.properties.some(ts.isSpreadAssignment)) {
      const written = node.properties.find(
        (one) => ts.isPropertyAssignment(one) && one.name.getText(source) === "status",
      );
      if (
        written &&
        ts.isStringLiteral(written.initializer) &&
        statuses.has(written.initializer.text) &&
        /\.\.\.\s*run\b/.test(node.getText(source))
      )
        found.push(file.at(node.getStart(source), "changes a run's status: only transition() of domain/job.ts may"));
    }
    if (
      ts.isBinaryExpression(node) &&
      node.operatorToken.kind === ts.SyntaxKind.EqualsToken &&
      /\brun\.status$/.test(node.left.getText(source))
    )
      found.push(file.at(node.getStart(source), "assigns run.status: only transition() of domain/job.ts may"));
  }
  return found;
}
