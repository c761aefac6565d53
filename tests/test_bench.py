"""bench: rows that are right, files that are whole, a plot that names its models."""

import csv
import dataclasses
import gc
import warnings
import weakref

import pytest

from mixtral_rag.bench import BenchRow, bench, write_csv
from mixtral_rag.engines import llama_library
from mixtral_rag.engines.llama_perplexity import Perplexity
from mixtral_rag.errors import ModelFileError, ModelNotFoundError, SettingsError

TEXT = "The garden was laid out in 1509. 苏州园林是中国古典园林的代表。\n" * 40


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))


def row(name, gigabytes, bits, *scores, trained=32_768):
    found = tuple(Perplexity(n, value, 0.05, 4, 99) for n, value in scores)
    return BenchRow(name, int(gigabytes * 1e9), bits, trained, 32_000, 50.0, 90.0, found)


def test_each_file_is_measured_and_stopping_keeps_what_was_finished(tiny_mixtral, tiny_base):
    done = []
    files = [tiny_mixtral, tiny_base, tiny_mixtral]
    given = {"contexts": [128, 64], "n_chunks": 2, "n_threads": 1, "seconds": 0.3}
    rows = list(bench(files, TEXT, on_progress=lambda *step: done.append(step), **given))
    assert [(r.path, len(r.perplexities)) for r in rows] == [
        (path, n) for path in (tiny_mixtral, tiny_base) for n in (0, 1, 2)
    ]
    last = rows[2]
    assert [(p.n_ctx, p.n_chunks) for p in last.perplexities] == [(128, 2), (64, 2)]
    assert last.file_bytes == tiny_mixtral.stat().st_size
    assert last.bits_per_weight == 32
    assert last.prefill_rate > 0
    assert not last.is_beyond(32_768)
    assert last.is_beyond(32_769)
    totals = {total for _, _, total in done}
    assert totals == {2 * (2 * 128 + 2 * 64)}
    assert [n for _, n, _ in done] == sorted(n for _, n, _ in done)
    assert done[-1][1] == totals.pop()


def test_one_file_is_in_memory_at_a_time(tiny_mixtral, tiny_base, monkeypatch):
    alive = []
    real = llama_library.load_model

    def watched(header, **options):
        gc.collect()
        if not options.get("vocab_only"):
            assert not [m for m in alive if m() is not None], "another model is still loaded"
        model = real(header, **options)
        if not options.get("vocab_only"):
            alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(llama_library, "load_model", watched)
    rows = bench([tiny_mixtral, tiny_base], TEXT, contexts=[64], n_chunks=1, seconds=0.2)
    assert len(list(rows)) == 4
    assert len(alive) == 2
    assert not [m for m in alive if m() is not None]


def test_everything_is_checked_before_the_first_file_is_loaded(
    tiny_mixtral, tiny_old_layout, smollm, tmp_path
):
    with pytest.raises(SettingsError, match=r"the text has 4 tokens, too few.* 64"):
        bench([tiny_mixtral], "Hello, world", contexts=[64])
    with pytest.raises(SettingsError, match="131,072"):
        bench([tiny_mixtral], TEXT, contexts=[64, 200_000])
    with pytest.raises(ModelFileError, match="mixtral-rag upgrade"):
        bench([tiny_mixtral, tiny_old_layout], TEXT, contexts=[64])
    with pytest.raises(ModelNotFoundError, match=r"no\.gguf"):
        bench([tiny_mixtral, tmp_path / "no.gguf"], TEXT, contexts=[64])


def test_csv_has_a_line_for_each_file_and_context(tmp_path):
    from pathlib import Path

    rows = [
        row(Path("/m/中文模型, q4.gguf"), 26.4, 4.5, (4096, 4.4488), (65_536, 4.9)),
        row(Path("/m/b.gguf"), 17, 3.0),
    ]
    write_csv(rows, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert [(r["file"], r["n_ctx"], r["beyond_training"], r["perplexity"]) for r in read] == [
        ("中文模型, q4.gguf", "4096", "no", "4.4488"),
        ("中文模型, q4.gguf", "65536", "yes", "4.9000"),
        ("b.gguf", "", "", ""),
    ]
    assert {(r["decode_ms_per_token"], r["prefill_tokens_per_s"]) for r in read} == {
        ("90.00", "50.0")
    }
    with pytest.raises(SettingsError, match="cannot write"):
        write_csv(rows, tmp_path / "no" / "out.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_plot_is_drawn_whatever_the_names(tmp_path, suffix):
    pytest.importorskip("matplotlib", reason="plots need the extra `bench`")
    from pathlib import Path

    from mixtral_rag.bench_plot import plot

    rows = [
        row(Path("/m/中文-模型-q4_k.gguf"), 26.4, 4.5, (4096, 4.4), (65_536, 4.9)),
        row(Path("/m/_a$b$_{c.gguf"), 17, 3.0, (4096, 4.6), (65_536, 5.2)),
        row(Path("/m/unfinished.gguf"), 17, 3.0),
    ]
    folder = tmp_path / "plots"
    folder.mkdir()
    target = folder / f"out{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a character without a glyph is a warning
        labels = plot(rows, target)
    assert labels in (["中文-模型-q4_k", "_a$b$_{c"], ["file 1", "file 2"])
    assert target.stat().st_size > 5000
    assert [p.name for p in folder.iterdir()] == [target.name]
    plain = [dataclasses.replace(rows[1], path=Path("/m/é-Ω.gguf"))]
    assert plot(plain, target) == ["é-Ω"]
    with pytest.raises(SettingsError, match="nothing to draw"):
        plot([rows[2]], target)


def test_a_plot_of_another_kind_is_refused_at_once(tmp_path):
    pytest.importorskip("matplotlib", reason="plots need the extra `bench`")
    from mixtral_rag.bench_plot import check_plot

    with pytest.raises(SettingsError, match=r"\.png, \.svg, \.pdf"):
        check_plot(tmp_path / "out.xlsx")
