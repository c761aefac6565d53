"""As much of Go's text/template (https://pkg.go.dev/text/template) as Ollama's templates need.

Actions: assignment, if, else if, else, range, end, and printing; values: fields, variables, texts,
numbers, and the functions eq, gt, len and slice.
"""

import re

_ACTION = re.compile(r"\{\{(- )?\s*(.*?)\s*( -)?\}\}", re.DOTALL)
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[()]|:=|=|,|[^\s(),]+')


def render(template, data):
    """The text of a template over a dict."""
    nodes, rest = _parse(_cut(template))
    assert not rest, "an end too many"
    return _run(nodes, data, {"$": data})


def _cut(template):
    """Texts and actions in turn; a hyphen in an action trims the text beside it."""
    parts, at, trims = [], 0, False
    for found in _ACTION.finditer(template.replace("{{-", "{{- ").replace("-}}", " -}}")):
        text = found.string[at : found.start()]
        text = text.lstrip() if trims else text
        parts.append(("text", text.rstrip() if found[1] else text))
        parts.append(("do", found[2]))
        at, trims = found.end(), bool(found[3])
    text = found.string[at:]
    return [*parts, ("text", text.lstrip() if trims else text)]


def _parse(parts):
    """Nodes up to the `else` or `end` that closes them, and what follows."""
    nodes = []
    while parts:
        (kind, text), *parts = parts
        first, *words = _WORD.findall(text) if kind == "do" else ("", text)
        if kind == "text":
            nodes.append(("text", text))
        elif first in ("end", "else"):
            return nodes, [(first, words), *parts]
        elif first in ("if", "range"):
            node, parts = _branches(first, words, parts)
            nodes.append(node)
        else:
            nodes.append(("do", [first, *words]))
    return nodes, []


def _branches(kind, words, parts):
    body, ((closer, more), *parts) = _parse(parts)
    other = []
    if closer == "else" and more:
        node, parts = _branches("if", more[1:], parts)
        return (kind, words, body, [node]), parts
    if closer == "else":
        other, (_, *parts) = _parse(parts)
    return (kind, words, body, other), parts


def _run(nodes, dot, variables):
    out = ""
    for kind, *rest in nodes:
        if kind == "text":
            out += rest[0]
        elif kind == "do":
            words = rest[0]
            if len(words) > 1 and words[1] in (":=", "="):
                variables[words[0]] = _value(words[2:], dot, variables)
            else:
                out += str(_value(words, dot, variables))
        elif kind == "if":
            words, body, other = rest
            out += _run(body if _value(words, dot, variables) else other, dot, variables)
        else:
            (index, _, item, _, *words), body, _ = rest
            for i, each in enumerate(_value(words, dot, variables)):
                variables |= {index: i, item: each}
                out += _run(body, each, variables)
    return out


def _value(words, dot, variables):
    values, words = [], list(words)
    while words:
        word = words.pop(0)
        if word == "(":
            depth, inner = 1, []
            while depth:
                inner.append(words.pop(0))
                depth += (inner[-1] == "(") - (inner[-1] == ")")
            values.append(_value(inner[:-1], dot, variables))
        else:
            values.append(_atom(word, dot, variables))
    if callable(values[0]):
        return values[0](*values[1:])
    assert len(values) == 1, values
    return values[0]


def _atom(word, dot, variables):
    functions = {"eq": lambda a, b: a == b, "gt": lambda a, b: a > b, "len": len,
                 "slice": lambda items, start: items[start:]}  # fmt: skip
    if word in functions:
        return functions[word]
    if word.startswith('"'):
        return word[1:-1].encode().decode("unicode_escape")
    if word.isdigit():
        return int(word)
    name, *fields = word.split(".")
    value = variables[name] if name else dot
    for field in fields:
        value = value[field] if field else value
    return value
