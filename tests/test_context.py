from hypothesis import given
from hypothesis import strategies as st

from mixtral_rag.citations import cite
from mixtral_rag.context import arrange, plan_context
from mixtral_rag.types import Passage


def passage(path, position, text="text", section=("S",), pages=None, score=0.5):
    return Passage(f"{path}{position}", path, path, text, position, pages, section, score)


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


class Characters:
    """Counts characters as tokens; every passage costs a head."""

    def __init__(self, head=20):
        self.head = head

    def prompt(self, passages):
        return 10 + sum(len(p.text) + self.head for p in passages)

    def text(self, text):
        return len(text)


def library(n_documents, n_windows, length):
    """Documents of windows of ten sentences each, half under one heading and half under another."""
    return [
        passage(
            f"d{d}", i, " ".join(["x" * (length // 10 - 2) + "."] * 10),
            section=("A",) if i < n_windows // 2 else ("B",), score=1 - d / 100 - i / 1000,
        )
        for d in range(n_documents)
        for i in range(n_windows)
    ]  # fmt: skip


def near(passages):
    def around(hit, distance):
        return [
            p for p in passages
            if p.path == hit.path and abs(p.position - hit.position) <= distance
        ]  # fmt: skip

    return around


@given(
    st.integers(1, 4), st.integers(1, 12), st.integers(50, 400), st.integers(60, 6000), st.randoms()
)
def test_a_plan_never_overflows_and_spends_what_it_may(n, windows, length, budget, rng):
    everything = library(n, windows, length)
    hits = rng.sample(everything, k=min(len(everything), 5))
    measure = Characters()
    plan = plan_context(hits, measure, budget=budget, top_k=3, around=near(everything))
    assert measure.prompt(plan.passages) == plan.tokens <= max(budget, 10)
    whole = measure.prompt(arrange([p for p in everything if p.path in {h.path for h in hits[:3]}]))
    enough = min(budget, whole)
    sentence = length // 10 + 20 + 30  # no beginning of a passage is shorter than this with a head
    assert plan.tokens >= min(0.95 * enough, enough - sentence)
    again = plan_context(hits, measure, budget=budget, top_k=3, around=near(everything))
    assert again == plan


def test_the_best_passages_come_first_then_what_stands_around_them():
    everything = library(3, 8, 100)
    hits = [everything[2], everything[12], everything[20]]
    measure = Characters(head=0)
    plan = plan_context(hits, measure, budget=330, top_k=2, around=near(everything))
    assert [(p.path, p.position) for p in plan.passages] == [("d0", 2), ("d1", 4)]
    assert len(plan.passages[0].text) > 100  # with a beginning of its neighbour
    plan = plan_context(hits, measure, budget=530, top_k=2, around=near(everything))
    assert [(p.path, p.section, p.position) for p in plan.passages] == [
        ("d0", ("A",), 1), ("d1", ("B",), 4)
    ]  # fmt: skip


def test_what_is_left_out_is_told_with_the_reason():
    everything = library(2, 4, 200)
    hits = [everything[0], everything[4]]
    plan = plan_context(hits, Characters(), budget=330, top_k=2)
    assert [(left.passage.id, left.reason) for left in plan.left_out] == [
        (everything[4].id, "only its beginning fits")
    ]
    assert everything[4].text.startswith(plan.passages[1].text)
    assert plan.passages[1].text.endswith(".")
    plan = plan_context(hits, Characters(), budget=235, top_k=2)
    assert [left.reason for left in plan.left_out] == ["no room is left"]


def test_nothing_is_read_around_what_did_not_fit():
    everything = [passage("a", i, "long. " * 100) for i in range(1)] + [
        passage("a", i, "short. " * 5) for i in range(1, 4)
    ]
    hits = [everything[0], passage("b", 0, "short. " * 5)]
    plan = plan_context(hits, Characters(), budget=300, top_k=2, around=near(everything))
    assert {p.path for p in plan.passages if p.position} == set()


def test_everything_is_read_where_it_fits():
    everything = library(2, 4, 100)
    hits = [everything[5]]
    plan = plan_context(hits, Characters(), budget=2000, everything=everything)
    assert plan.is_whole
    assert sum(len(p.text) for p in plan.passages) >= 790
    plan = plan_context(hits, Characters(), budget=500, everything=everything)
    assert not plan.is_whole


def test_a_number_stands_for_at_most_four_windows():
    assert [p.position for p in arrange(library(1, 20, 50))] == [0, 4, 8, 10, 14, 18]


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
