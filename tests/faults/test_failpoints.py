"""An ingest fails or is killed at each of its steps: nothing is lost, and the next one goes on."""

import random
import shutil
import signal

import child
import pytest
from corpus import QuickEmbedder
from failpoints import REBUILDING, STEPS, Failpoint, arm_kill
from places import Place

from mixtral_rag.errors import MixtralRagError
from mixtral_rag.ingest import pipeline
from mixtral_rag.store.documents import DocumentStore

ONCE = {"remove", "delete", "note", "commit", "upsert", *REBUILDING}
FAULTS = [(step, fault) for step, faults in STEPS.items() for fault in faults]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("failpoints"))


@pytest.fixture
def folder(place, tmp_path, request):
    """A copy of the store; without its index where the step is one of making that anew."""
    folder = place.copy(tmp_path / "store")
    if request.node.callspec.params["step"] in REBUILDING:
        shutil.rmtree(next(folder.glob("index-*")))
        (folder / "index-00000000").mkdir()  # as a kill may leave it
    return folder


def when(step, fault):
    """The first or second time, before or after; the same in every run."""
    chance = random.Random(f"{step} {fault}")
    nth = 1 if step in ONCE else chance.randint(1, 2)
    return {"nth": nth, "after": chance.random() < 0.5}


@pytest.mark.parametrize(("step", "fault"), FAULTS)
def test_a_step_fails(step, fault, place, folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "ReaderPool", child.DirectPool)
        patch.setattr(pipeline.Reading, "stored", pipeline.Reading.stored)  # put back afterwards
        child.tell_of_commits(place.acks)
        act = STEPS[step][fault]
        failpoint = Failpoint(step, act, **when(step, fault), patch=patch.setattr)
        store = DocumentStore(folder, QuickEmbedder())
        told = ""
        try:
            pipeline.ingest([place.corpus.folder], store, prune=True, n_workers=1)
        except MixtralRagError as error:
            told = str(error)
        except (MemoryError, KeyboardInterrupt):
            pass
        finally:
            store.close()
    assert failpoint.reached
    assert "\n" not in told
    place.check(folder)
    place.finish(folder)


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_step(step, place, folder):
    process = child.start(
        folder,
        place.corpus.folder,
        place.acks,
        prepare=arm_kill,
        arguments=(step, when(step, "kill")),
    )
    process.join()
    assert process.exitcode == -signal.SIGKILL
    place.check(folder)
    place.finish(folder)
