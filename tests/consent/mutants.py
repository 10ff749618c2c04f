"""Every small change of the engine's source that these few kinds can make (CS-37).

Beside the faults, which are thought of, these are not: each comparison, connective, condition,
constant and answer of the module is turned once. Left out are texts that are no code (names,
docstrings, the tables' URLs), `strict=` of zip, and what the decision does not use (levels,
labels at use, the next instant, the Hold without a look).
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

ELSEWHERE: Final = frozenset(
    {
        "labelled",
        "decide_again_at",
        "on_hold",
        "level_shown",
        "is_sensitive",
        "reach",
        "highest",
        "detail",
        "Level",
    }
)
"""Tested by tests/consent/test_levels.py, test_decide.py and tests/rules/test_recount.py."""
COMPARISONS: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
NAMES: Final = {"YES": "NO", "NO": "YES", "any": "all", "all": "any", "min": "max", "max": "min"}
ATTRIBUTES: Final = {
    "PERMIT": "DENY",
    "DENY": "PERMIT",
    "SILENT": "DENY",
    "IMPLICIT_DENY": "SILENT",
    "stands": "grants",
    "grants": "stands",
    "HOPEFUL": "SOBER",
    "SOBER": "HOPEFUL",
    "RELEASE": "HOLD",
    "HOLD": "WITHHOLD",
}


@dataclass(frozen=True)
class Mutant:
    line: int
    now: str
    then: str
    number: int
    """Of the expression, in the order of `ast.walk`."""
    turned: ast.expr


def mutants(source: str) -> list[Mutant]:
    """In the order of the source's functions, without repeats."""
    found: dict[tuple[int, str], Mutant] = {}
    for node, turned in _turned(_numbered(ast.parse(source))):
        then = ast.unparse(turned)
        number: int = node.number  # type: ignore[attr-defined]
        if then != ast.unparse(node):
            mutant = Mutant(node.lineno, ast.unparse(node), then, number, turned)
            found.setdefault((number, then), mutant)
    return list(found.values())


def changed(source: str, mutant: Mutant) -> ast.Module:
    """The module with the one change in it, to be compiled."""
    tree = _numbered(ast.parse(source))
    _Swap(mutant).visit(tree)
    return ast.fix_missing_locations(tree)


def _numbered(tree: ast.Module) -> ast.Module:
    for number, node in enumerate(ast.walk(tree)):
        node.number = number  # type: ignore[attr-defined]
    return tree


class _Swap(ast.NodeTransformer):
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if getattr(node, "number", None) == self._mutant.number:
            return self._mutant.turned
        return super().generic_visit(node)


def _turned(tree: ast.Module) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Each expression of a function's body that can be turned, with what it is turned into."""
    for function in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]:
        if function.name in ELSEWHERE:
            continue
        words = [n for n in ast.walk(function) if isinstance(n, ast.keyword)]
        strict: list[ast.expr] = [word.value for word in words if word.arg == "strict"]
        said = [n.value for n in ast.walk(function) if isinstance(n, ast.Expr)]
        typed = [n.annotation for n in ast.walk(function) if isinstance(n, ast.AnnAssign)]
        apart = [*strict, *said, *typed]
        inner = [
            n
            for part in function.body
            for n in ast.walk(part)
            if not isinstance(part, ast.FunctionDef)
        ]
        for node in inner:
            if isinstance(node, ast.If | ast.IfExp | ast.While):
                yield node.test, ast.Constant(value=True)
                yield node.test, ast.Constant(value=False)
            if isinstance(node, ast.comprehension):
                for test in node.ifs:
                    yield test, ast.Constant(value=True)
            if isinstance(node, ast.expr) and node not in apart:
                yield from ((node, turned) for turned in _of(node))


def _of(node: ast.expr) -> Iterator[ast.expr]:
    match node:
        case ast.Compare(left=left, ops=[op], comparators=others) if type(op) in COMPARISONS:
            yield ast.Compare(left, [COMPARISONS[type(op)]()], others)
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            for n in range(len(values)):
                rest = values[:n] + values[n + 1 :]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(op, rest)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            yield ast.BinOp(left, ast.BitAnd(), right)
        case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
            yield ast.BinOp(left, ast.BitOr(), right)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.Constant(value=bool(value)):
            yield ast.Constant(value=not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value=value + 1)
        case ast.Constant(value=str(value)) if value.isupper() or value.islower():
            yield ast.Constant(value=value + "x")
        case ast.Name(id=name, ctx=ast.Load()) if name in NAMES:
            yield ast.Name(NAMES[name], ast.Load())
        case ast.Attribute(value=value, attr=name, ctx=ast.Load()) if name in ATTRIBUTES:
            yield ast.Attribute(value, ATTRIBUTES[name], ast.Load())
