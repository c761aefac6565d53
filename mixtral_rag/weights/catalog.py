"""The models this package is made for: where they are published, and what each size costs.

Sizes, bits a weight, perplexity and speed are upstream's own measurements
(https://github.com/ymcui/Chinese-Mixtral, "量化效果评测"): llama.cpp, perplexity of Chinese-Mixtral
at 4K context, milliseconds a token on an M3 Max and an A100 40G. Upstream's GB are 2^30 bytes.
"""

import difflib
from dataclasses import dataclass

from mixtral_rag.errors import ModelNotFoundError

GIB = 1 << 30
_KV_BYTES_A_TOKEN = 128 << 10  # 32 layers x 8 KV heads x 128 values x 2 (K and V) x 2 bytes (f16)
# Beside weights and KV cache llama.cpp keeps buffers for one batch; seen: 0.3 GB for Mixtral-8x7B.
COMPUTE_BYTES = 400 << 20


@dataclass(frozen=True, slots=True)
class Quantisation:
    """One column of upstream's table; None where upstream gives no figure.

    Args:
        n_bytes: size of the file.
        perplexity: of Chinese-Mixtral at 4K context; lower is better.
        ms_m3_max, ms_a100: milliseconds for one token on those machines.
    """

    name: str
    n_bytes: int
    bits_per_weight: float
    perplexity: float | None
    ms_m3_max: float | None
    ms_a100: float | None


def _row(name: str, gib: float, bits: float, ppl: float | None, m3: float | None,
         a100: float | None) -> Quantisation:  # fmt: skip
    return Quantisation(name, int(gib * GIB), bits, ppl, m3, a100)


# Best first.
QUANTISATIONS = (
    _row("F16", 87.0, 16.0, None, None, None),
    _row("Q8_0", 46.2, 8.50, 4.4076, None, None),
    _row("Q6_K", 35.7, 6.57, 4.4092, 36.0, 29.9),
    _row("Q5_K", 30.0, 5.69, 4.4192, 36.9, 22.6),
    _row("Q5_0", 30.0, 5.52, 4.4224, 35.7, 20.5),
    _row("Q4_K", 24.6, 4.87, 4.4488, 31.2, 21.7),
    _row("Q4_0", 24.6, 4.53, 4.4917, 27.8, 17.1),
    _row("Q3_K", 19.0, 3.86, 4.5545, 37.6, 21.7),
    _row("IQ3_XXS", 17.1, 3.14, 4.5990, None, 20.6),
    _row("Q2_K", 16.1, 2.96, 5.1846, 29.1, 20.3),
    _row("IQ2_XS", 12.7, 2.34, 6.9784, None, 23.7),
    _row("IQ2_XXS", 11.4, 2.10, 8.5981, None, 22.5),
)


@dataclass(frozen=True, slots=True)
class Form:
    """One way a model is published: `gguf`, `full` (Hugging Face weights) or `lora`.

    Args:
        repos: hub (`hf` or `modelscope`) to repository.
        n_bytes: size of the whole; 0 for GGUF, where it depends on the quantisation.
    """

    kind: str
    repos: dict[str, str]
    n_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A model of the catalogue."""

    name: str
    about: str
    is_instruct: bool
    forms: tuple[Form, ...]

    def form_repos(self, kind: str) -> tuple[str, ...]:
        """Repositories of that form."""
        return tuple(repo for f in self.forms if f.kind == kind for repo in f.repos.values())

    def form(self, kind: str) -> Form:
        """The form of that kind.

        Raises:
            ModelNotFoundError: it is not published so.
        """
        for form in self.forms:
            if form.kind == kind:
                return form
        kinds = ", ".join(f.kind for f in self.forms)
        raise ModelNotFoundError(f"{self.name} is not published as {kind}; there are: {kinds}")


def _chinese(name: str, about: str, *, is_instruct: bool) -> CatalogModel:
    def repos(suffix: str) -> dict[str, str]:
        return {"hf": f"hfl/{name}{suffix}", "modelscope": f"ChineseAlpacaGroup/{name}{suffix}"}

    forms = (
        Form("gguf", {"hf": f"hfl/{name}-gguf"}),
        Form("full", repos(""), int(87.0 * GIB)),
        Form("lora", repos("-lora"), int(2.4 * GIB)),
    )
    return CatalogModel(name, about, is_instruct, forms)


def _original(name: str, repo: str, about: str, *, is_instruct: bool) -> CatalogModel:
    full = {"hf": f"mistralai/{repo}", "modelscope": f"AI-ModelScope/{repo}"}
    forms = (Form("gguf", {"hf": f"TheBloke/{repo}-GGUF"}), Form("full", full, int(87.0 * GIB)))
    return CatalogModel(name, about, is_instruct, forms)


MODELS = (
    _chinese("chinese-mixtral-instruct", "answers, in Chinese and English", is_instruct=True),
    _chinese("chinese-mixtral", "base model, for continuing text", is_instruct=False),
    _original("mixtral-8x7b-instruct", "Mixtral-8x7B-Instruct-v0.1", "answers; Mistral's own",
              is_instruct=True),
    _original("mixtral-8x7b", "Mixtral-8x7B-v0.1", "base model; LoRA weights go on it",
              is_instruct=False),
)  # fmt: skip


def find_model(name: str) -> CatalogModel:
    """The model of that name; case does not matter.

    Raises:
        ModelNotFoundError: there is none; the nearest names are offered.
    """
    wanted = name.lower()
    for model in MODELS:
        if wanted == model.name:
            return model
    names = [m.name for m in MODELS]
    near = difflib.get_close_matches(wanted, names, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are: {', '.join(names)}"
    raise ModelNotFoundError(
        f"unknown model {name!r}; {hint} Any other is taken as owner/repository."
    )


def needed_memory(n_bytes: int, n_ctx: int) -> int:
    """Bytes of memory a Mixtral-8x7B of that size takes with an f16 KV cache of `n_ctx` tokens."""
    return n_bytes + n_ctx * _KV_BYTES_A_TOKEN + COMPUTE_BYTES


def longest_context(n_bytes: int, memory: int, n_ctx: int = 32_768) -> int:
    """The longest context, halved from `n_ctx` to 2,048 tokens at least, that fits; else 0."""
    while n_ctx >= 2048 and needed_memory(n_bytes, n_ctx) > memory:
        n_ctx //= 2
    return n_ctx if n_ctx >= 2048 else 0


def best_that_fits(memory: int) -> Quantisation | None:
    """The quantisation of the lowest perplexity that fits `memory` bytes with a 32K context."""
    return next((q for q in QUANTISATIONS if longest_context(q.n_bytes, memory) == 32_768), None)
