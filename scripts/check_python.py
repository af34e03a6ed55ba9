"""House rules that need Python's syntax tree: `check_python.py FILE...` prints `path:line what is wrong`."""

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

FILE_LINES = 400
FUNCTION_LINES = 100
PARAMETERS = 3
# Torch and its kin call these: their signature is not ours to choose.
FOREIGN_SIGNATURES = {"forward", "backward", "setup_context", "update", "__exit__", "__call__"}
LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.ENCODING,
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def docstring_lines(tree: ast.AST) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def code_lines(text: str, tree: ast.AST) -> set[int]:
    """Lines with a token that is not a comment, a docstring or layout."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines - docstring_lines(tree)


def parameters(function: Function) -> int:
    """Positional parameters without self and cls; more than three keyword-only ones count as well."""
    args = function.args
    positional = [arg.arg for arg in [*args.posonlyargs, *args.args] if arg.arg not in {"self", "cls", "ctx"}]
    return max(len(positional), len(args.kwonlyargs))


def is_kernel(function: Function) -> bool:
    """A kernel of Triton: tensors, sizes and constants, each an argument."""
    return any(ast.unparse(mark).startswith("triton.jit") for mark in function.decorator_list)


def sleeps(tree: ast.AST) -> Iterator[int]:
    """Lines of `time.sleep` that no loop surrounds: a wait for nothing in particular."""
    looped = {
        id(inner)
        for loop in ast.walk(tree)
        if isinstance(loop, ast.For | ast.While)
        for inner in ast.walk(loop)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in {"time.sleep", "sleep"}
            and id(node) not in looped
        ):
            yield node.lineno


def problems(path: str) -> Iterator[str]:
    text = Path(path).read_text(encoding="utf-8")
    tree = ast.parse(text, path)
    lines = code_lines(text, tree)
    if len(lines) > FILE_LINES:
        yield f"{path}:1 has {len(lines)} lines of code, at most {FILE_LINES}: split it by noun"
    for node in ast.walk(tree):
        if not isinstance(node, Function):
            continue
        length = sum(1 for line in lines if node.lineno <= line <= (node.end_lineno or node.lineno))
        if length > FUNCTION_LINES:
            yield f"{path}:{node.lineno} {node.name} has {length} lines, at most {FUNCTION_LINES}"
        count = parameters(node)
        foreign = node.name in FOREIGN_SIGNATURES or is_kernel(node)
        if count > PARAMETERS and not foreign and "/tests/" not in path:
            yield f"{path}:{node.lineno} {node.name} takes {count} parameters, at most {PARAMETERS}"
    if "/tests/" in path:
        for line in sleeps(tree):
            yield f"{path}:{line} sleeps: poll a condition with a deadline"


for argument in sys.argv[1:]:
    for problem in problems(argument):
        print(problem)
