"""Prompts that go on from states on the disk, in new engines as in new processes."""

import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtral_rag.engines.llama_states import LEAST_PLAIN, batch_sizes, whole_groups
from mixtral_rag.engines.llamacpp import LlamaCppEngine
from mixtral_rag.kvstore import BLOCK, KVStore
from mixtral_rag.types import SamplingOptions

pytest.importorskip("llama_cpp", reason="the extra llamacpp is not installed")
GREEDY = SamplingOptions(temperature=0, repeat_penalty=1, max_tokens=6)
WORDS = (
    "the", "committee", "met", "in", "spring", "and", "agreed", "that", "every", "member", "has",
    "a", "copy", "of", "all", "minutes", "before", "summer", "unless", "rain", "falls", "near",
)  # fmt: skip


def answer(engine, ids):
    pieces = list(engine.generate(list(ids), GREEDY, whole=True))
    return pieces[-1].text, pieces[-1].usage.cached_tokens


def text(seed, n):
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(n))


@pytest.fixture
def engine(smollm, tmp_path):
    """Makes engines that keep states; none of them holds what another computed."""
    return lambda **options: LlamaCppEngine(
        str(smollm), n_ctx=2048, kv_folder=tmp_path / "kv", **options
    )


def settled(folder):
    """The states, once threads have written their notes."""
    for thread in threading.enumerate():
        if thread.name == "kv-save":
            thread.join()
    return KVStore(folder).states()


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_greedy_text_after_a_restored_prefix_is_that_of_a_cold_run(
    kv_type, engine, smollm, tmp_path
):
    cold = LlamaCppEngine(str(smollm), n_ctx=2048, kv_type=kv_type, kv_memory=0)
    first = cold.tokenizer.encode(text(0, 400))[:400]
    answer(engine(kv_type=kv_type), first)
    assert len(settled(tmp_path / "kv")) == 1
    for seed in range(1, 6):
        draw = random.Random(seed)
        split, n = draw.randrange(200, 390), draw.randrange(20, 120)
        ids = first[:split] + cold.tokenizer.encode(text(seed, n))
        restored, cached = answer(engine(kv_type=kv_type), ids)
        assert cached > min(split, len(ids) - 64) - BLOCK
        answer(cold, [cold.tokenizer.eos_id])  # forgets what it held
        assert restored == answer(cold, ids)[0], (split, n)


def test_a_conversation_goes_on_in_another_process_as_in_the_same(engine, tmp_path):
    one = engine()
    prompt = one.tokenizer.encode(text(1, 300))
    said, _ = answer(one, prompt)
    settled(tmp_path / "kv")
    more = prompt + one.tokenizer.encode(f"{said} {text(2, 90)}")
    two = engine()
    assert answer(two, more)[1] >= len(prompt) - BLOCK


def test_another_model_type_or_damage_means_an_ordinary_prefill(engine, smollm, tmp_path):
    ids = engine().tokenizer.encode(text(3, 400))
    said = answer(engine(), ids)[0]
    (state,) = settled(tmp_path / "kv")
    assert answer(engine(), ids)[1] > 200
    assert answer(engine(kv_type="q8_0"), ids)[1] == 0
    data = bytearray(state.path.read_bytes())
    data[len(data) // 2] ^= 1
    state.path.write_bytes(data)
    assert answer(engine(), ids) == (said, 0)


def test_a_prompt_with_little_new_is_not_kept_again(engine, tmp_path):
    one = engine()
    ids = one.tokenizer.encode(text(4, 500))
    answer(one, ids)
    n_bytes = KVStore(tmp_path / "kv").n_bytes() or settled(tmp_path / "kv")[0].size
    for seed in range(5, 8):
        answer(engine(), ids + one.tokenizer.encode(text(seed, 30)))
    states = settled(tmp_path / "kv")
    assert (len(states), states[0].size) == (1, n_bytes)


def test_a_smaller_window_leaves_a_longer_state_alone(engine, smollm, tmp_path):
    ids = engine().tokenizer.encode(text(6, 500))
    answer(engine(), ids)
    (state,) = settled(tmp_path / "kv")
    small = LlamaCppEngine(str(smollm), n_ctx=400, kv_folder=tmp_path / "kv")
    assert answer(small, ids[:300])[1] == 0
    assert state.path.exists()
    assert answer(engine(), ids)[1] > 300


def test_no_folder_means_no_files(smollm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    engine = LlamaCppEngine(str(smollm), n_ctx=1024)
    answer(engine, engine.tokenizer.encode(text(1, 300)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n", [1, 63, 64, 511, 512, 513, 540, 575, 576, 577, 1023, 1024, 1030])
def test_no_batch_is_a_sliver(n):
    sizes = batch_sizes(n, 512, 64)
    assert sum(sizes) == n
    assert max(sizes) <= 512
    assert min(sizes) >= min(n, 64)
    assert len(sizes) == -(-n // 512)


def test_conversations_that_take_turns_are_not_read_again(smollm):
    """The second to fourth turn of each computes only what is new, and says what it would alone."""
    engine, alone = (LlamaCppEngine(str(smollm), n_ctx=2048) for _ in range(2))
    talks = [engine.tokenizer.encode(text(seed, 300)) for seed in (1, 2, 3)]
    more = engine.tokenizer.encode(text(9, 20))
    taken_by_turns = [list(talk) for talk in talks]
    for turn in range(4):
        for talk in taken_by_turns:
            said, cached = answer(engine, talk)
            assert cached >= (len(talk) - len(more) - BLOCK if turn else 0)
            talk += [*engine.tokenizer.encode(said), *more]
    for talk, expected in zip(talks, taken_by_turns, strict=True):
        for _ in range(4):
            talk += [*engine.tokenizer.encode(answer(alone, talk)[0]), *more]
        assert talk == expected


def test_no_memory_for_other_conversations_means_reading_again(smollm):
    engine = LlamaCppEngine(str(smollm), n_ctx=2048, kv_memory=0)
    one, two = (engine.tokenizer.encode(text(seed, 300)) for seed in (1, 2))
    answer(engine, one)
    answer(engine, two)
    assert answer(engine, one)[1] < 16


def test_memory_for_other_conversations_holds_to_its_budget(smollm):
    n_bytes = 24_000 * 500  # SmolLM2 takes 23,040 bytes a token in f16
    engine = LlamaCppEngine(str(smollm), n_ctx=2048, kv_memory=n_bytes)
    talks = [engine.tokenizer.encode(text(seed, 350))[:350] for seed in (1, 2, 3)]
    for talk in talks:
        answer(engine, talk)
    assert answer(engine, talks[1])[1] > 300  # the latest that was put aside; it pushed out
    assert answer(engine, talks[0])[1] < 16  # the first


def test_a_reader_that_lost_its_turn_goes_on_where_it_was(smollm):
    engine = LlamaCppEngine(str(smollm), n_ctx=2048)
    ids = engine.tokenizer.encode(text(1, 400))
    longer = SamplingOptions(temperature=0, repeat_penalty=1, max_tokens=12)
    whole = "".join(p.text for p in engine.generate(list(ids), longer))
    slow = engine.generate(list(ids), longer)
    begun = next(slow).text
    answer(engine, engine.tokenizer.encode(text(2, 400)))
    assert begun + "".join(p.text for p in slow) == whole


@given(st.integers(0, 3000), st.integers(0, 3000), st.integers(1, 64))
def test_a_shared_beginning_is_cut_between_groups_of_tokens(n, more, n_first):
    kept = whole_groups(n, n_first)
    assert kept <= n
    assert kept % 4 == 0
    if n >= 32:
        assert n - kept < 4
    elif n_first >= LEAST_PLAIN:
        assert min(n, n_first) - kept < 4
    else:
        assert kept == 0, "the prompt before may have been computed token by token"
    sizes = batch_sizes(n + more + 1, 512, LEAST_PLAIN)
    assert sum(sizes) == n + more + 1
    assert all(size % 4 == 0 for size in sizes[:-1])


@pytest.mark.parametrize("n_first", [6, 17, 200])
@pytest.mark.parametrize("n_shared", [3, 18, 27])
def test_a_short_common_beginning_gives_the_numbers_of_a_cold_run(tiny_mixtral, n_first, n_shared):
    """Such as a system prompt; it is only kept where it was computed as part of a large batch."""
    options = SamplingOptions(temperature=0, max_tokens=24, logprobs=True)
    chance = random.Random(n_first)
    begin, end = ([chance.randrange(300, 900) for _ in range(n)] for n in (n_shared, 90))
    former = [*begin, *(chance.randrange(300, 900) for _ in range(200))][:n_first]

    def asked(engine):
        return list(engine.generate([*begin, *end], options))

    engine = LlamaCppEngine(str(tiny_mixtral), n_ctx=512)
    list(engine.generate(former, options))
    warm, cold = asked(engine), asked(LlamaCppEngine(str(tiny_mixtral), n_ctx=512))
    assert [p.logprobs for p in warm] == [p.logprobs for p in cold]
    expected = min(n_shared, n_first) // 4 * 4 if n_first >= LEAST_PLAIN else 0
    assert warm[-1].usage.cached_tokens == expected


def test_the_same_question_gets_the_same_numbers_again(tiny_mixtral):
    """What was kept of it is cut as llama.cpp multiplies, in groups; in f32 the last bit shows."""
    engine = LlamaCppEngine(str(tiny_mixtral), n_ctx=512)
    ids = engine.tokenizer.encode("a question of some length, " * 8)
    options = SamplingOptions(temperature=0, max_tokens=3, logprobs=True)
    first, again = (list(engine.generate(ids, options)) for _ in range(2))
    assert [p.logprobs for p in first] == [p.logprobs for p in again]
    assert again[-1].usage.cached_tokens > len(ids) - 20
