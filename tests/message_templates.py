"""Every text of the package that the command line may print, read off its source.

A template has `{}` where a value goes. What an f-string takes from a conditional expression, a
local variable or a function of the same module is put in when all of it is text.
"""

import ast
import inspect
import itertools
from pathlib import Path

import mixtral_rag
from mixtral_rag import errors

PACKAGE = Path(mixtral_rag.__file__).parent
ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type)}
PRINTING = ("say", "warn", "translated")
TITLES = ("add_task", "add_column", "byte_progress", "task_progress", "on_progress", "show")
_MOST = 40  # alternatives of one text


class Texts:
    """The texts of one module."""

    def __init__(self, path):
        self.path = path
        self.tree = ast.parse(path.read_text("utf-8"))
        self.scopes, self.functions = {}, {}
        for node in ast.walk(self.tree):
            for child in ast.iter_child_nodes(node):
                child.parent = node
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                self.functions[node.name] = node

    def errors(self):
        """The templates of the errors that are made here."""
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = _name(node.func)
            if name == "_failure" or "problems.append" in ast.unparse(node.func):
                yield from self.told(node.args[-1])
            is_base = name == "__init__" and _class_of(node) in ERRORS
            if name in ERRORS - {"MissingExtraError", "EmptyStoreError"} or is_base:
                yield from self.told(node.args[0])

    def printed(self):
        """The templates that are printed here, with titles of columns and bars."""
        for node in ast.walk(self.tree):
            is_call = isinstance(node, ast.Call) and node.args
            if is_call and _name(node.func) in (*PRINTING, *TITLES):
                yield from self.told(node.args[0])
            if isinstance(node, ast.Dict) and self._is_of_facts(node):
                for part in (*node.keys, *node.values):
                    yield from self.told(part) if part else ()
            if isinstance(node, ast.Assign) and "facts" in ast.unparse(node.targets[0]):
                yield from self.told(node.value)

    def _is_of_facts(self, node):
        """Whether a dictionary is of names and values that are printed, one a line."""
        while not isinstance(node, ast.FunctionDef | ast.Module):
            node = node.parent
        return getattr(node, "name", "") in ("_machine_facts", "_model_facts", "_print_model")

    def put_together(self):
        """Every text with values in it, whatever becomes of it."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.JoinedStr | ast.BinOp):
                yield from self.told(node)

    def help(self):
        """Help of options and arguments, and the docstrings of commands."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                for keyword in node.keywords:
                    if keyword.arg == "help" and _name(node.func) in _TYPER:
                        yield from self.told(keyword.value)
            if isinstance(node, ast.FunctionDef) and _is_command(node):
                text = ast.get_docstring(node)
                yield inspect.cleandoc(text)

    def told(self, node):
        """The templates of one expression; one that is only a hole is left out."""
        found = (form.strip() for form in self.forms(node, 0) or ())
        return [t for t in found if t.replace("{}", "").strip(" :,;.[]()")]

    def forms(self, node, depth):
        """All texts an expression may have, None where it need not be text of ours."""
        if depth > 6:
            return None
        match node:
            case ast.Constant(value=str(text)):
                return [text.replace("{}", "{ }")]
            case ast.JoinedStr(values=values):
                return self._joined([self._part(v, depth) for v in values])
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                sides = [self.forms(side, depth + 1) for side in (left, right)]
                return None if sides == [None, None] else self._joined([s or ["{}"] for s in sides])
            case ast.IfExp(body=body, orelse=orelse):
                return self._either((body, orelse), depth)
            case ast.BoolOp(values=values):
                return self._either(values, depth)
            case ast.Call(func=ast.Name(id="plain" | "translated" | "str"), args=[inner, *_]):
                return self.forms(inner, depth + 1)
            case ast.Call(func=ast.Name(id=name)) if name in self.functions:
                return self._returned(self.functions[name], depth)
            case ast.Name(id=name):
                return self._assigned(node, name, depth)
        return None

    def _part(self, value, depth):
        if isinstance(value, ast.Constant):
            return [value.value]
        if value.format_spec is not None or value.conversion != -1:
            return ["{}"]
        found = self.forms(value.value, depth + 1) or ["{}"]
        return ["{}"] if any(f.startswith("{}") for f in found) else found

    def _joined(self, parts):
        n = 1
        for part in parts:
            n *= len(part)
        if n > _MOST:
            parts = [p if len(p) == 1 else ["{}"] for p in parts]
        return ["".join(chosen) for chosen in itertools.product(*parts)]

    def _either(self, nodes, depth):
        found = [self.forms(node, depth + 1) for node in nodes]
        if all(f is None for f in found):
            return None
        return list(dict.fromkeys(itertools.chain(*(f or ["{}"] for f in found))))

    def _returned(self, function, depth):
        values = [n.value for n in ast.walk(function) if isinstance(n, ast.Return) and n.value]
        found = [self.forms(v, depth + 1) for v in values]
        if not found or any(f is None for f in found):
            return None
        return list(dict.fromkeys(itertools.chain(*found)))

    def _assigned(self, node, name, depth):
        scope = node
        while not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module):
            scope = scope.parent
        values = []
        for n in ast.walk(scope):
            if isinstance(n, ast.Assign):
                values += [value for target, value in _pairs(n) if _name(target) == name]
            elif isinstance(n, ast.AugAssign | ast.For | ast.NamedExpr) and _name(n.target) == name:
                return None
        found = [self.forms(v, depth + 1) for v in values]
        if not found or any(f is None for f in found):
            return None
        return list(dict.fromkeys(itertools.chain(*found)))


_TYPER = ("Option", "Argument", "Typer")


def _name(node):
    return getattr(node, "id", None) or getattr(node, "attr", None)


def _pairs(assignment):
    """Targets and values, also of `a, b = 1, 2`."""
    for target in assignment.targets:
        if isinstance(target, ast.Tuple) and isinstance(assignment.value, ast.Tuple):
            yield from zip(target.elts, assignment.value.elts, strict=True)
        else:
            yield target, assignment.value


def _class_of(node):
    while node is not None and not isinstance(node, ast.ClassDef):
        node = getattr(node, "parent", None)
    return node and node.name


def _is_command(node):
    """Whether a function is one: its options are typer's, or it is decorated as one."""
    if node.name.startswith("_") or not ast.get_docstring(node):
        return False
    decorated = any(isinstance(d, ast.Call) and _name(d.func) == "command"
                    for d in node.decorator_list)  # fmt: skip
    return decorated or node.name in COMMANDS


COMMANDS = ("ingest", "ask", "warm", "summarize", "status", "remove", "verify", "models", "pull",
            "inspect", "upgrade", "merge", "convert", "quantize", "doctor", "bench", "serve",
            "mcp")  # fmt: skip


def modules(*patterns):
    """The modules whose path in the package matches one of the patterns."""
    found = (path for pattern in patterns for path in sorted(PACKAGE.glob(pattern)))
    return [Texts(path) for path in dict.fromkeys(found)]
