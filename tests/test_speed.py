"""A measured speed: what it predicts, how it is fitted, when it is kept and when forgotten."""

import dataclasses
import math
import os
import random

import pytest

from mixtral_rag.engines.llama_measure import MeasuredModel, attention_share, known_speed
from mixtral_rag.speed import Speed, fit, save_speed, saved_speed
from mixtral_rag.weights.gguf import read_header

SPEED = Speed(
    prefill_base=0.01, prefill_slope=1e-5, decode_base=0.1, decode_slope=2e-5, depth=2048,
    slopes_are_measured=True, load_seconds=1.0,
)  # fmt: skip


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_prediction_is_the_sum_over_every_token():
    said = SPEED.predicted(3000, 200)
    first = sum(0.01 + 1e-5 * d for d in range(3000))
    answer = sum(0.1 + 2e-5 * d for d in range(3000, 3200))
    assert said.first_token_seconds == pytest.approx(first)
    assert said.total_seconds == pytest.approx(first + answer)
    cached = SPEED.predicted(3000, 200, cached_tokens=2500)
    rest = sum(0.01 + 1e-5 * d for d in range(2500, 3000))
    assert cached.first_token_seconds == pytest.approx(rest)
    assert SPEED.predicted(3000, 0, cached_tokens=4000).first_token_seconds == 0
    assert SPEED.decode_rate(0) == pytest.approx(10)


def test_a_line_is_fitted_where_it_can_be_told_from_noise():
    rng = random.Random(1)
    points = [(d, (0.01 + 1e-5 * d) * rng.uniform(0.97, 1.03)) for d in range(256, 4096, 512)]
    base, slope, is_measured = fit(points, share=0.1)
    assert is_measured
    assert (base, slope) == (pytest.approx(0.01, rel=0.1), pytest.approx(1e-5, rel=0.1))
    # too shallow, and falling for noise: attention's share stands in, and the average is kept
    for points in ([(32, 0.011), (96, 0.009)], [(100, 0.02), (2000, 0.01)]):
        base, slope, is_measured = fit(points, share=1e-3)
        assert not is_measured
        assert slope == pytest.approx(base * 1e-3)
        middle = sum(p[0] for p in points) / 2
        assert base + slope * middle == pytest.approx(sum(p[1] for p in points) / 2)


def test_it_is_kept_for_the_very_same_file_engine_and_options(cache, tmp_path):
    model = tmp_path / "m.gguf"
    model.write_bytes(b"one")
    given = {"engine": "e 1", "options": {"n_threads": 2, "kv_type": "f16"}}
    assert saved_speed(model, **given) is None
    path = save_speed(SPEED, model, **given)
    assert saved_speed(model, **given) == SPEED
    assert saved_speed(model, engine="e 2", options=given["options"]) is None
    assert saved_speed(model, engine="e 1", options={"n_threads": 2, "kv_type": "q8_0"}) is None
    assert [p.suffix for p in path.parent.iterdir()] == [".json"]
    os.utime(model, ns=(0, 0))
    assert saved_speed(model, **given) is None
    assert saved_speed(tmp_path / "gone.gguf", **given) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"identity": 1}', "\xff"])
def test_a_torn_or_foreign_file_counts_as_never_measured(cache, tmp_path, text):
    model = tmp_path / "m.gguf"
    model.write_bytes(b"one")
    given = {"engine": "e", "options": {}}
    path = save_speed(SPEED, model, **given)
    whole = path.read_text("utf-8")
    for bad in (text, whole.replace("0.01", "-1"), whole.replace("depth", "death")):
        path.write_bytes(bad.encode("latin-1"))
        assert saved_speed(model, **given) is None
    path.write_text(whole)
    assert saved_speed(model, **given) == SPEED


def test_attentions_share_counts_active_weights_only(tiny_mixtral):
    """2 layers, 4 heads of 16; of 8 experts 2 are active."""
    width, kv, ff, layers = 64, 32, 96, 2
    layer = 2 * width + 2 * width * width + 2 * kv * width + 8 * width + 2 * 3 * ff * width
    active = layers * layer + width
    assert attention_share(read_header(tiny_mixtral)) == pytest.approx(2 * layers * 64 / active)


def test_measuring_gives_plausible_numbers_and_keeps_them(cache, tiny_mixtral):
    shares = []
    with MeasuredModel(tiny_mixtral, n_threads=1) as model:
        speed = model.speed(seconds=1, on_progress=shares.append)
    assert 0 < speed.decode_rate() < 1e6
    assert 0 < speed.prefill_rate() < 1e6
    assert 128 <= speed.depth <= 4096
    assert shares == sorted(shares)
    assert 0 < shares[-1] <= 1
    assert known_speed(tiny_mixtral, n_threads=1) == speed
    assert known_speed(tiny_mixtral, n_threads=1, kv_type="q8_0") is None
    assert math.isfinite(sum(dataclasses.asdict(speed).values()))
