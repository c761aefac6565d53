from hypothesis import given
from hypothesis import strategies as st

from mixtral_rag.engines.text import TextStream

tokens = st.lists(st.binary(max_size=4), max_size=12)
stops = st.lists(st.text(alphabet="ab你好", min_size=1, max_size=4), max_size=3)


def run(pieces, stop=()):
    stream = TextStream(stop)
    out = []
    for piece in pieces:
        out.append(stream.push(piece))
        if stream.stopped:
            break
    return [*out, stream.finish()]


def test_a_character_that_spans_tokens_comes_out_whole():
    data = "你😀".encode()
    assert run([data[i : i + 1] for i in range(len(data))]) == [
        "", "", "你", "", "", "", "😀", "",
    ]  # fmt: skip


def test_a_stop_text_that_spans_pieces_is_never_shown():
    assert run([b"one E", b"N", b"D two"], ["END"]) == ["one ", "", "", ""]


def test_what_only_looked_like_a_stop_text_is_shown():
    assert run([b"one E", b"N", b"X"], ["END"]) == ["one ", "", "ENX", ""]
    assert "".join(run([b"one EN"], ["END"])) == "one EN"


def test_the_stop_text_that_is_complete_first_wins():
    assert "".join(run([b"aXbYc"], ["Y", "X"])) == "a"


def test_bytes_that_are_no_text_become_the_replacement_character():
    assert "".join(run([b"a\xff", b"\xe4\xbd"])) == "a\ufffd\ufffd"


@given(tokens)
def test_pieces_join_to_the_decoded_bytes(pieces):
    assert "".join(run(pieces)) == b"".join(pieces).decode("utf-8", "replace")


@given(st.text(alphabet="ab你好", max_size=30), stops, st.data())
def test_stopping_equals_cutting_the_whole_text(text, stop, data):
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=10)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    found = [(at + len(s), at) for s in stop if (at := text.find(s)) >= 0]
    expected = text[: min(found)[1]] if found else text
    assert "".join(run(pieces, stop)) == expected
