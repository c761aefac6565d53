"""Perplexity against an independent computation, and against what must come out."""

import math

import gguf
import numpy as np
import pytest
from tiny_mixtral import N_EXPERT_USED, N_VOCAB

from mixtral_rag.engines.llama_measure import MeasuredModel
from mixtral_rag.engines.llama_perplexity import count_chunks, tokens_for_perplexity
from mixtral_rag.engines.llamacpp import LlamaCppEngine
from mixtral_rag.errors import GenerationError, SettingsError
from mixtral_rag.types import SamplingOptions
from mixtral_rag.weights.gguf import read_header

TEXT = "苏州园林是中国古典园林的代表。The garden was laid out in 1509 and is open all year.\n" * 12


def norm(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rotate(x, base=1e6):
    """Rotary positions on neighbouring pairs, as llama.cpp's `llama` models have them."""
    n, _, size = x.shape
    angle = np.arange(n)[:, None] * base ** (-np.arange(0, size, 2) / size)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)


def mixtral_logits(path, ids, n_head=4, n_head_kv=2):
    """The whole forward pass in float64, from the weights in the file and the two papers."""
    w = {t.name: np.asarray(t.data, np.float64) for t in gguf.GGUFReader(path).tensors}
    x, n = w["token_embd.weight"][ids], len(ids)
    for i in range(2):
        layer = {k.removeprefix(f"blk.{i}."): v for k, v in w.items() if f"blk.{i}." in k}
        h = norm(x, layer["attn_norm.weight"])
        q = rotate((h @ layer["attn_q.weight"].T).reshape(n, n_head, -1))
        k = rotate((h @ layer["attn_k.weight"].T).reshape(n, n_head_kv, -1))
        v = (h @ layer["attn_v.weight"].T).reshape(n, n_head_kv, -1)
        k, v = (np.repeat(part, n_head // n_head_kv, axis=1) for part in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
        scores += np.triu(np.full((n, n), -np.inf), 1)
        heads = np.einsum("hqk,khd->qhd", softmax(scores), v).reshape(n, -1)
        x = x + heads @ layer["attn_output.weight"].T
        h = norm(x, layer["ffn_norm.weight"])
        gates = softmax(h @ layer["ffn_gate_inp.weight"].T)
        out = np.zeros_like(x)
        for token in range(n):
            best = np.argsort(gates[token])[-N_EXPERT_USED:]
            for e in best:
                gate = layer["ffn_gate_exps.weight"][e] @ h[token]
                up = layer["ffn_up_exps.weight"][e] @ h[token]
                part = layer["ffn_down_exps.weight"][e] @ (gate / (1 + np.exp(-gate)) * up)
                out[token] += gates[token, e] / gates[token, best].sum() * part
        x = x + out
    return norm(x, w["output_norm.weight"]) @ w["output.weight"].T


@pytest.mark.parametrize("n_batch", [512, 12])
def test_it_equals_an_independent_computation(tiny_mixtral, n_batch):
    """Chunks of 32 cross batches of 12, and the second half begins within one."""
    n_ctx, losses = 32, []
    with MeasuredModel(tiny_mixtral, kv_type="f32", n_batch=n_batch) as model:
        ids = tokens_for_perplexity(model.tokenizer, TEXT)
        found = model.perplexity(ids, n_ctx=n_ctx, n_chunks=2)
    assert ids[0] == 1
    for start in (0, n_ctx):
        chunk = [1, *ids[start + 1 : start + n_ctx]]
        chances = softmax(mixtral_logits(tiny_mixtral, chunk))
        losses += [-math.log(chances[i, chunk[i + 1]]) for i in range(n_ctx // 2, n_ctx - 1)]
    assert (found.n_chunks, found.n_scored) == (2, 2 * (n_ctx // 2 - 1))
    # llama.cpp's attention rounds to half precision; these logits are five times a real model's.
    assert math.log(found.value) == pytest.approx(np.mean(losses), rel=2e-4)
    error = np.std(losses) / math.sqrt(len(losses) - 1)
    assert found.error / found.value == pytest.approx(error, rel=1e-3)


def with_output(path, target, value):
    """The same model whose every logit is `value`."""
    header = read_header(path)
    tensor = next(t for t in header.tensors if t.name == "output.weight")
    data = bytearray(path.read_bytes())
    start = header.data_offset + tensor.offset
    data[start : start + tensor.size] = np.full(tensor.size // 4, value, np.float32).tobytes()
    target.write_bytes(data)
    return target


def test_a_model_that_knows_nothing_has_the_vocabulary_for_perplexity(tiny_mixtral, tmp_path):
    with MeasuredModel(with_output(tiny_mixtral, tmp_path / "even.gguf", 0)) as model:
        found = model.perplexity(tokens_for_perplexity(model.tokenizer, TEXT), n_ctx=64)
    assert found.value == pytest.approx(N_VOCAB, rel=1e-6)
    assert found.error == pytest.approx(0, abs=1e-3)
    assert found.n_chunks > 2


def test_a_model_that_computes_nonsense_is_named(tiny_mixtral, tmp_path):
    with (
        MeasuredModel(with_output(tiny_mixtral, tmp_path / "bad.gguf", math.nan)) as model,
        pytest.raises(GenerationError, match="not finite"),
    ):
        model.perplexity(tokens_for_perplexity(model.tokenizer, TEXT), n_ctx=64)


def test_a_real_model_gives_what_llama_cpps_own_tool_gives(smollm, examples):
    """Golden: `llama-perplexity -f debian-choosing.zh-cn.html -c 128 -b 128 --chunks 3`."""
    text = (examples / "debian-choosing.zh-cn.html").read_text("utf-8")
    with MeasuredModel(smollm) as model:
        ids = tokens_for_perplexity(model.tokenizer, text)
        done = []
        found = model.perplexity(
            ids, n_ctx=128, n_chunks=3, on_progress=lambda n, total: done.append((n, total))
        )
    # Kernels round these 4-bit weights differently by processor (0.6% between AVX2 and AVX-512)
    # and by batch (0.4%); the exact comparison is the one in float64 above.
    assert (found.value, found.error) == pytest.approx((3.8477, 0.60716), rel=2e-2)
    assert done == sorted(done)
    assert done[-1] == (384, 384)


def test_only_whole_chunks_count_and_a_short_text_is_told_its_length():
    assert count_chunks(1000, 256) == 3
    assert count_chunks(1000, 256, 2) == 2
    assert count_chunks(1000, 256, 9) == 3
    with pytest.raises(SettingsError, match=r"the text has 1,000 tokens, too few.*4,096"):
        count_chunks(1000, 4096)
    with pytest.raises(SettingsError, match="too small"):
        count_chunks(1000, 2)
    with pytest.raises(SettingsError, match="n_chunks is 0"):
        count_chunks(1000, 256, 0)


def test_memory_stays_small_whatever_the_context(tiny_mixtral):
    """1,024 rows of 32,000 logits would be 131 MB."""
    import subprocess
    import sys

    code = (
        "import sys, resource; from pathlib import Path\n"
        "from mixtral_rag.engines.llama_measure import MeasuredModel\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with MeasuredModel(Path(sys.argv[1]), n_batch=128) as model:\n"
        "    ids = [5 + i % 999 for i in range(2048)]\n"
        "    model.perplexity(ids, n_ctx=256, n_chunks=2)\n"
        "    before = peak()\n"
        "    model.perplexity(ids, n_ctx=2048)\n"
        "print(peak() - before)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tiny_mixtral)], capture_output=True, text=True, check=True
    )
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(out.stdout) * unit < 50e6


def test_the_context_still_answers_after_its_logits_were_read(tiny_mixtral):
    """Reading logits leaves no trace in what the engine then generates."""
    engine = LlamaCppEngine(str(tiny_mixtral), n_ctx=256)
    options = SamplingOptions(temperature=0, max_tokens=8)
    ids = engine.tokenizer.encode(TEXT)[:40]
    before = [piece.text for piece in engine.generate(ids, options)]
    from mixtral_rag.engines import Cancellation

    for _ in engine._loaded.logits(list(range(5, 100)), first=50, cancel=Cancellation()):
        pass
    assert [piece.text for piece in engine.generate(ids, options)] == before
