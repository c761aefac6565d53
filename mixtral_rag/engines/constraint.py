"""Decoding held to a JSON schema or a pattern, for the engines that choose their tokens here.

llguidance (the library behind constrained decoding in vLLM, SGLang and llama.cpp's own builds)
tells which tokens may come next; the engine drops the others before it chooses.
"""

import functools
import json
import weakref
from typing import Any

from mixtral_rag.errors import GenerationError, MissingExtraError, SettingsError
from mixtral_rag.tokenizer import Tokenizer
from mixtral_rag.types import SamplingOptions

# JSON as Python's json.dumps writes it. Free white space would let a model write it without end.
LAYOUT = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}


class Constraint:
    """What one generation may say next, under the JSON schema or the pattern of its options.

    Args:
        options: one of the two is set.
        tokenizer: the model's vocabulary.

    Raises:
        SettingsError: no JSON schema or pattern, or one with a part that cannot be enforced.
        MissingExtraError: llguidance is not installed.
    """

    def __init__(self, options: SamplingOptions, tokenizer: Tokenizer) -> None:
        library, vocabulary = _library(), _vocabulary(tokenizer)
        self._what = _what(options)
        self._matcher = library.LLMatcher(vocabulary, _grammar(options), log_level=0)
        if self._matcher.is_error():
            raise SettingsError(
                f"this {self._what} cannot be enforced: {_one_line(self._matcher.get_error())}"
            )
        self._n_vocab = len(tokenizer)
        self._bits = library.numpy.allocate_token_bitmask(1, self._n_vocab)

    @property
    def is_finished(self) -> bool:
        """Whether the text is complete and nothing can follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> Any:
        """Which tokens may come next: a boolean array of shape (vocabulary,)."""
        import numpy as np

        _library().numpy.fill_next_token_bitmask(self._matcher, self._bits)
        self._check()
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")
        return bits[: self._n_vocab].view(np.bool_)

    def accept(self, token: int) -> None:
        """Take note of the token that was chosen."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _one_line(self._matcher.get_error())
            raise GenerationError(f"the {self._what} is too complex: {reason}")


def is_constrained(options: SamplingOptions) -> bool:
    """Whether the text is held to anything."""
    return options.json_schema is not None or options.pattern is not None


def check_constraint(options: SamplingOptions) -> None:
    """Raise `SettingsError` for what cannot be enforced, without a model."""
    if not is_constrained(options):
        return
    error = _library().LLMatcher.validate_grammar(_grammar(options))
    if error and not error.startswith("WARNING"):
        raise SettingsError(f"this {_what(options)} cannot be enforced: {_one_line(error)}")


def _what(options: SamplingOptions) -> str:
    return "pattern" if options.json_schema is None else "JSON schema"


def _grammar(options: SamplingOptions) -> str:
    if options.json_schema is None:
        return str(_library().LLMatcher.grammar_from_regex(options.pattern))
    return _json_grammar(options.json_schema)


def _json_grammar(schema: str) -> str:
    try:
        parsed = json.loads(schema)
    except ValueError as error:
        raise SettingsError(f"the JSON schema is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise SettingsError("a JSON schema must be an object")
    return str(_library().LLMatcher.grammar_from_json_schema(schema, defaults=LAYOUT))


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


@functools.cache
def _library() -> Any:
    try:
        import llguidance
        import llguidance.numpy
    except ModuleNotFoundError as error:
        raise MissingExtraError("llguidance", "llamacpp") from error
    return llguidance


_vocabularies: "weakref.WeakKeyDictionary[Any, Any]" = weakref.WeakKeyDictionary()


def _vocabulary(tokenizer: Tokenizer) -> Any:
    """The tokenizer as llguidance wants it; made once, it takes a tenth of a second."""
    if tokenizer not in _vocabularies:
        library = _library()
        wrapper = library.TokenizerWrapper(_Tokens(tokenizer))
        ends = sorted(tokenizer.end_ids) or [tokenizer.eos_id]
        _vocabularies[tokenizer] = library.LLTokenizer(wrapper, eos_token=ends)
    return _vocabularies[tokenizer]


class _Tokens:
    """What llguidance asks of a tokenizer; control tokens begin with 0xff for it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, max(tokenizer.bos_id, 0)
        self.special_token_ids = sorted(tokenizer.special_tokens.values())
        names = {i: text.encode() for text, i in tokenizer.special_tokens.items()}
        self.tokens = [
            b"\xff" + names[i] if i in names else tokenizer.piece(i) for i in range(len(tokenizer))
        ]
        self._encode = tokenizer.encode
        # SentencePiece puts a space before a text, which is not wanted in the middle of one. After
        # a line break, a token by itself, it does not.
        self._before = "\n" if tokenizer.adds_space_prefix else ""
        self._n_before = len(tokenizer.encode(self._before))

    def __call__(self, text: Any) -> list[int]:
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._encode(self._before + text)[self._n_before :]
