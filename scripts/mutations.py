"""Where code can be broken, and how: comparisons, arithmetic, constants, booleans, statements, the order of arguments.

Only within functions: what a module or a class computes when it is imported stays. Annotations, defaults, decorators,
docstrings and the words of an error stay too.
"""

import ast
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
}

KINDS = {ast.Compare: "compare", ast.BinOp: "arithmetic", ast.UnaryOp: "boolean", ast.BoolOp: "boolean"}
KINDS |= {ast.Call: "swapped"}


@dataclass(frozen=True)
class Place:
    """One mutant."""

    function: tuple[str, str, int]
    """File, qualified name and first line, as the code object has them."""
    kind: str
    id: str
    """What it is called in results: stays when lines move."""
    number: int
    """Which of the file's mutants."""

    def code(self) -> CodeType | None:
        """The function's code with the one change."""
        path = Path(self.function[0])
        module = ast.parse(path.read_text())
        node, changed = next(itertools.islice(sites(module), self.number, None))[2:]
        for parent in ast.walk(module):
            for name, value in ast.iter_fields(parent):
                if value is node:
                    setattr(parent, name, changed)
                elif isinstance(value, list) and any(item is node for item in value):
                    setattr(parent, name, [changed if item is node else item for item in value])
        whole = compile(ast.fix_missing_locations(module), str(path), "exec")
        return next((code for code in codes(whole) if key(code) == self.function), None)


def codes(code: CodeType) -> Iterator[CodeType]:
    """A code object and all within it."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from codes(inner)


def key(code: CodeType) -> tuple[str, str, int]:
    """What a function is known by."""
    return code.co_filename, code.co_qualname, code.co_firstlineno


def places(path: Path, shown: str) -> Iterator[Place]:
    """All mutants of a file, in its order."""
    seen: Counter[str] = Counter()
    for number, (name, first, node, changed) in enumerate(sites(ast.parse(path.read_text()))):
        after = "dropped" if isinstance(changed, ast.Pass) else ast.unparse(changed)
        id = f"{shown} {name}: {ast.unparse(node)} -> {after}"
        seen[id] += 1
        kind = "dropped" if isinstance(changed, ast.Pass) else KINDS.get(type(node), "constant")
        yield Place((str(path), name, first), kind, id + (f" ({seen[id]})" if seen[id] > 1 else ""), number)


def sites(module: ast.Module) -> Iterator[tuple[str, int, ast.AST, ast.AST]]:
    """(a function's qualified name, its first line, a node, what takes its place)."""
    for name, function in outermost(module, ""):
        first = min([function.lineno, *(d.lineno for d in function.decorator_list)])
        for node in inside(function):
            yield from ((name, first, node, changed) for changed in changes(node))


def outermost(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions and methods that stand in no other."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            yield prefix + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from outermost(child, f"{prefix}{child.name}.")


def inside(function: ast.FunctionDef) -> Iterator[ast.expr | ast.stmt]:
    """The nodes of its body that are run, without the words of errors and texts."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    todo: list[ast.AST] = list(reversed(body))
    while todo:
        node = todo.pop()
        if isinstance(node, ast.expr | ast.stmt):
            yield node
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr):
            continue
        children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            children = node.body if isinstance(node, ast.FunctionDef) else [node.body]
        elif isinstance(node, ast.AnnAssign):
            children = [node.value] if node.value is not None else []
        todo += reversed(children)


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """What may take its place."""
    if isinstance(node, ast.Compare):
        for number, operator in enumerate(node.ops):
            ops = [*node.ops[:number], COMPARED[type(operator)](), *node.ops[number + 1 :]]
            yield ast.copy_location(ast.Compare(node.left, ops, node.comparators), node)
    elif isinstance(node, ast.BinOp) and type(node.op) in COMPUTED:
        yield ast.copy_location(ast.BinOp(node.left, COMPUTED[type(node.op)](), node.right), node)
    elif isinstance(node, ast.UnaryOp) and (isinstance(node.op, ast.Not) or not isinstance(node.operand, ast.Constant)):
        yield node.operand
    elif isinstance(node, ast.BoolOp):
        yield ast.copy_location(ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values), node)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        value: bool | float = node.value + 1 if isinstance(node.value, int) else 2 * node.value or 1.0
        yield ast.copy_location(ast.Constant(not node.value if isinstance(node.value, bool) else value), node)
    elif isinstance(node, ast.Call) and len(node.args) >= 2 and not any(isinstance(a, ast.Starred) for a in node.args):
        yield ast.copy_location(ast.Call(node.func, [node.args[1], node.args[0], *node.args[2:]], node.keywords), node)
    if isinstance(node, ast.Raise | ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield ast.copy_location(ast.Pass(), node)
