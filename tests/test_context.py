from hypothesis import given
from hypothesis import strategies as st

from mixtral_rag.citations import cite
from mixtral_rag.context import arrange, plan_context
from mixtral_rag.types import Passage


def passage(path, position, text="text", section=("S",), pages=None, score=0.5):
    return Passage(f"{path}{position}", path, path, text, position, pages, section, score)


def count(passages):
    return 10 + sum(len(p.text) for p in passages)


found = st.lists(
    st.builds(
        passage,
        st.sampled_from("ab"),
        st.integers(0, 9),
        st.text(alphabet="x", min_size=1, max_size=30),
        st.sampled_from([("S",), ("T",)]),
    ),
    max_size=8,
    unique_by=lambda p: p.id,
)


@given(found, st.integers(10, 120))
def test_a_plan_never_overflows_and_accounts_for_every_passage(hits, budget):
    plan = plan_context(hits, count, budget=budget)
    assert plan.tokens <= budget
    sent = "".join(sorted("".join(p.text for p in plan.passages).replace("\n", "")))
    expected = "".join(p.text for p in hits if p not in plan.left_out)
    assert sent == expected
    for left in plan.left_out:
        before = [h for h in hits[: hits.index(left)] if h not in plan.left_out]
        assert count(arrange([*before, left])) > budget


@given(found, st.integers(10, 120), st.randoms())
def test_the_same_passages_give_the_same_prompt(hits, budget, rng):
    shuffled = list(hits)
    rng.shuffle(shuffled)
    assert arrange(hits) == arrange(shuffled)


def test_neighbours_under_one_heading_become_one():
    merged = arrange(
        [
            passage("a", 2, "second", pages=(2, 3), score=0.9),
            passage("a", 1, "first", pages=(1, 2)),
            passage("a", 3, "other heading", section=("T",)),
            passage("a", 5, "later"),
        ]
    )
    assert [p.text for p in merged] == ["first\nsecond", "other heading", "later"]
    assert (merged[0].pages, merged[0].score) == ((1, 3), 0.9)


PASSAGES = [
    passage("a", 0, "Paris is the capital of France. It lies on the Seine."),
    passage("b", 0, "北京是中国的首都。北京有故宫。"),
    passage("c", 0, "Nothing to see here."),
]


def quotes(answer, question="q"):
    return [(c.number, c.quote) for c in cite(answer, question, PASSAGES)]


def test_numbers_in_the_answer_become_citations_with_the_nearest_sentence():
    assert quotes("It lies on the river Seine [1].") == [(1, "It lies on the Seine.")]
    assert quotes("故宫在北京【2】，见[2]。") == [(2, "北京有故宫。")]


def test_numbers_that_no_passage_has_are_ignored():
    assert [n for n, _ in quotes("The capital of France is Paris [7] [0].")] == [1]


def test_without_numbers_the_passages_that_share_the_words_are_cited():
    assert quotes("The capital is Paris.") == [(1, "Paris is the capital of France.")]
    assert quotes("首都是北京。") == [(2, "北京是中国的首都。")]


def test_an_answer_that_nothing_supports_has_no_citations():
    assert quotes("Bananas grow on trees.") == []
    assert quotes("") == []


@given(st.text(max_size=60))
def test_a_quote_always_stands_in_its_passage(answer):
    for citation in cite(answer + " [1] [2] [3]", "q", PASSAGES):
        assert citation.quote in citation.passage.text
