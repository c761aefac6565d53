"""What the command line prints below an answer: its sources, and how the window was spent."""

from typing import TYPE_CHECKING

from mixtral_rag.console import duration, plain, say
from mixtral_rag.translation import padded, translated

if TYPE_CHECKING:
    from mixtral_rag.types import Account, Answer

_MOST_LISTED = 12


def print_citations(answer: "Answer") -> None:
    """What an answer rests on, file, place and words, and which sentences rest on nothing."""
    if answer.finish_reason == "length":
        say("\n(The answer was cut at its longest length; raise --max-tokens for more.)")
    if not answer.found:
        return
    if not answer.citations:
        say("\nNo passage supports this answer; do not rely on it.")
        return
    say("\nSources:")
    for citation in answer.citations:
        where = f", {citation.passage.where}" if citation.passage.where else ""
        print(plain(f"[{citation.number}] {citation.passage.name}{where}"))
        print(f'    "{" ".join(plain(citation.quote).split())}"')
    doubtful = [c for c in answer.claims if not c.is_supported]
    if doubtful:
        say("\nCheck these; their sources do not hold all of it:")
    for claim in doubtful:
        print(plain(f"  - {' '.join(claim.text.split())}"))
        print(plain(f"    {'; '.join(map(translated, claim.problems))}"))


def print_account(answer: "Answer") -> None:
    """How the context window was spent."""
    account = answer.account
    if account is None:
        say("\nThe model was not asked: nothing found has to do with the question.")
        return
    say(f"\nContext: {account.prompt:,} of {account.budget:,} tokens for the prompt, "
        f"{account.answer:,} kept for the answer, window {account.n_ctx:,}")  # fmt: skip
    for name in ("instructions", "history", "question"):
        print(f"  {padded(translated(name), 14)}{getattr(account, name):>8,}")
    notes = [translated("(everything there is)")] if account.is_whole else []
    notes += [translated("(each read on its own)")] if account.is_apart else []
    print("  ".join([f"  {padded(translated('passages'), 14)}{sum(account.passages):>8,}", *notes]))
    rows = list(zip(answer.passages, account.passages, strict=True))
    for number, (passage, tokens) in enumerate(rows[:_MOST_LISTED], start=1):
        where = f", {passage.where}" if passage.where else ""
        score = "" if passage.score is None else f"  {translated(f'cosine {passage.score:.3f}')}"
        print(plain(f"    [{number}] {tokens:>6,}  {passage.name}{where}{score}"))
    if len(rows) > _MOST_LISTED:
        say(f"    and {len(rows) - _MOST_LISTED} more")
    _print_left_out(account)
    _print_times(answer, account)


def _print_left_out(account: "Account") -> None:
    for left in account.left_out:
        passage = left.passage
        where = f", {passage.where}" if passage.where else ""
        say(f"  left out: {passage.name + where}: {left.reason}")


def _print_times(answer: "Answer", account: "Account") -> None:
    taken = answer.seconds
    search, first, total = (duration(taken[k]) for k in ("search", "first_token", "total"))
    if account.predicted_seconds is None:
        say(f"  search {search}, first token {first}, total {total}")
    else:
        say(f"  search {search}, first token {first} (predicted without cache: "
            f"{duration(account.predicted_seconds)}), total {total}")  # fmt: skip
    if (usage := answer.usage) is not None:
        computed = usage.prompt_tokens - usage.cached_tokens
        say(f"  {usage.cached_tokens:,} tokens of the prompt came from the cache, "
            f"{computed:,} were computed")  # fmt: skip
