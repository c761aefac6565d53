"""Documents from anywhere: a LangChain loader of your own, here one for a log of tickets.

    python examples/08_own_loader.py ["question"]

Documents with the same `source` make one document; loading again replaces what changed.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document

from mixtral_rag import Filter, open_qa

TICKETS = [
    {"id": 101, "team": "service", "text": "Pump P-7 in hall 2 leaks oil at the shaft seal."},
    {"id": 102, "team": "sales", "text": "客户询问 P-7 水泵的保修期是否可以延长到三十六个月。"},
    {"id": 103, "team": "service", "text": "The fan in hall 4 is louder than 71 dB since Monday."},
]


class TicketLoader(BaseLoader):
    """One document for each line of a JSONL file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lazy_load(self) -> Iterator[Document]:
        for line in self.path.read_text("utf-8").splitlines():
            ticket = json.loads(line)
            about = {"source": f"ticket {ticket['id']}", "team": ticket["team"]}
            yield Document(page_content=ticket["text"], metadata=about)


def main(question: str = "Which pump leaks?") -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tickets.jsonl"
        path.write_text("\n".join(json.dumps(t, ensure_ascii=False) for t in TICKETS), "utf-8")
        qa = open_qa(store=f"{folder}/store")
        print("added:", *qa.ingest_documents(TicketLoader(path)).added, sep=", ")
        print("again:", qa.ingest_documents(TicketLoader(path)).added or "nothing new")
        for asked in (question, "保修期能延长吗？"):
            print(f"{asked} {qa.search(asked)[0].text}")
        qa.filter = Filter(metadata={"team": "service"})
        print("service only:", [p.name for p in qa.search("水泵")])


if __name__ == "__main__":
    main(*sys.argv[1:2])
