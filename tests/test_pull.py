"""Fetching models, from a real HTTP server on this machine that behaves like the hubs, or badly."""

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from hub_server import Hub

from mixtral_rag.errors import (
    ChecksumError,
    HubAccessError,
    HubError,
    LockedError,
    ModelFileError,
    ModelNotFoundError,
    SettingsError,
)
from mixtral_rag.llm import ChineseMixtral
from mixtral_rag.settings import find_model, load_settings
from mixtral_rag.weights import download as transfer
from mixtral_rag.weights.check import damaged_files
from mixtral_rag.weights.gguf import read_header
from mixtral_rag.weights.library import locate_weights, models_folder, pulled_models
from mixtral_rag.weights.pull import choose_gguf, pull
from mixtral_rag.weights.upgrade import upgrade

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1", "localhost", "::1"])]

INSTRUCT = "hfl/chinese-mixtral-instruct-gguf"
SHARDS = {f"model-0000{i}-of-00003.safetensors": random.Random(i).randbytes(700_000) for i in "123"}


@pytest.fixture(scope="module")
def hub(tiny_old_layout, tiny_mixtral):
    old, new = tiny_old_layout.read_bytes(), tiny_mixtral.read_bytes()
    full = SHARDS | {
        "config.json": b"{}", "tokenizer.model": b"x" * 20_000, "consolidated.00.pt": b"y" * 99,
        "consolidated.safetensors": b"z" * 99, "README.md": b"#", ".gitattributes": b"*",
        "../evil.json": b"!", "sub/evil.json": b"!",
    }  # fmt: skip
    split = {"big-Q8_0-00001-of-00002.gguf": new, "big-Q8_0-00002-of-00002.gguf": new[:50_000]}
    hub = Hub(
        {
            INSTRUCT: {"README.md": b"#", "ggml-model-q4_k.gguf": old, "ggml-model-q8_0.gguf": new},
            "hfl/chinese-mixtral": full,
            "ChineseAlpacaGroup/chinese-mixtral-lora": {
                "adapter_config.json": b"{}", "adapter_model.safetensors": SHARDS[min(SHARDS)],
                "README.md": b"#",
            },
            "someone/split-GGUF": split,
            "someone/torn-GGUF": {"a-Q8_0-00002-of-00002.gguf": b"z"},
            "someone/no-gguf": {"config.json": b"{}"},
        }
    )  # fmt: skip
    yield hub
    hub.close()


@pytest.fixture(autouse=True)
def no_faults(hub, clean_environment, monkeypatch):
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(transfer, "_SEGMENT", 1 << 20)
    hub.cut_after = hub.status = hub.token = hub.refuse = hub.stall_after = None
    hub.corrupt, hub.has_ranges, hub.pause, hub.shift, hub.is_page = False, True, 0.0, 0, False
    hub.n_cuts = hub.n_status = 1 << 30
    hub.sent.clear()
    hub.requests.clear()


@pytest.fixture
def get(hub):
    def get(name="chinese-mixtral-instruct", **options):
        return pull(name, **{"quant": "Q8_0", "endpoint": hub.url, **options})

    return get


def left_behind():
    return sorted(p.name for p in models_folder().rglob("*") if p.is_file() and p.name != ".lock")


def test_the_hubs_own_client_takes_this_server_for_a_hub(hub, tmp_path):
    from huggingface_hub import hf_hub_download

    path = hf_hub_download(
        INSTRUCT, "ggml-model-q8_0.gguf", endpoint=hub.url, local_dir=tmp_path, token=False
    )
    assert Path(path).read_bytes() == hub.repos[INSTRUCT]["ggml-model-q8_0.gguf"]


def test_what_was_pulled_is_what_ask_uses(hub, get, tiny_mixtral, tiny_old_layout):
    seen = []
    model = get(
        quant="q4_k", on_progress=lambda what, done, total: seen.append((what, done / total))
    )
    assert model.title == "chinese-mixtral-instruct:Q4_K"
    assert find_model(load_settings({})) == (model.gguf, False)
    # It came in the layout that today's llama.cpp refuses, and was written in the new one.
    assert not read_header(model.gguf).has_old_expert_layout
    assert model.gguf.read_bytes() == upgrade(tiny_old_layout, Path("upgraded.gguf")).read_bytes()
    asked = ChineseMixtral(model="chinese-mixtral-instruct", temperature=0, max_tokens=8, n_ctx=256)
    wanted = ChineseMixtral(model=str(tiny_mixtral), temperature=0, max_tokens=8, n_ctx=256)
    assert asked.invoke("你好") == wanted.invoke("你好")
    assert list(dict(seen)) == ["downloading", "checking"]
    assert seen[-1] == ("checking", 1.0)
    assert left_behind() == [".ggml-model-q4_k.gguf.head", "ggml-model-q4_k.gguf", "model.json"]


def test_a_model_that_is_there_is_not_fetched_again(hub, get):
    first = get(quant="Q4_K")
    hub.requests.clear()
    assert get(quant="Q4_K") == first
    assert hub.requests == []
    sent = hub.sent.copy()
    for same in ("Q4_K_M", "ggml-model-q4_k.gguf"):  # the hub is asked, no file is fetched
        assert get(quant=same) == first
    assert hub.sent == sent


def test_a_connection_cut_again_and_again_costs_little(hub, get):
    hub.cut_after = 300_000
    size = len(hub.repos[INSTRUCT]["ggml-model-q8_0.gguf"])
    model = get()
    assert model.gguf.read_bytes() == hub.repos[INSTRUCT]["ggml-model-q8_0.gguf"]
    assert hub.sent["ggml-model-q8_0.gguf"] < 1.5 * size


PULLING = """
import sys
from mixtral_rag.weights import download
from mixtral_rag.weights.pull import pull
download._SEGMENT = 1 << 20
print("go", flush=True)
pull("chinese-mixtral-instruct", quant=sys.argv[2], endpoint=sys.argv[1], n_connections=4)
"""


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_K"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_at_any_time_it_goes_on_where_it_was(hub, get, how, quant, tiny_mixtral):
    """Also the one that comes in the old layout and is written in the new."""
    hub.pause = 0.01  # 4 connections of 6 MB/s
    name = f"ggml-model-{quant.lower()}.gguf"
    for _ in range(3):
        before = hub.sent[name]
        process = subprocess.Popen(
            [sys.executable, "-c", PULLING, hub.url, quant], stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        process.stdout.readline()
        while hub.sent[name] < before + 6_000_000 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(how)
        process.wait(10)
        process.stdout.close()
        assert pulled_models() == []
        assert not [name for name in left_behind() if not name.startswith(".")]
    hub.pause = 0.0
    data = get(quant=quant).gguf.read_bytes()
    assert len(data) > 18_000_000
    assert data == (upgrade(old_file(hub)) if quant == "Q4_K" else tiny_mixtral).read_bytes()
    # Sent again: at most a segment for each connection and stop, and the header, looked at first.
    assert hub.sent[name] - len(data) < 3 * (4 << 20) + 4 * (2 << 20) + 2_000_000
    assert [n for n in left_behind() if not n.endswith(".head")] == [name, "model.json"]


def old_file(hub):
    Path("old.gguf").write_bytes(hub.repos[INSTRUCT]["ggml-model-q4_k.gguf"])
    return Path("old.gguf")


def test_a_file_that_cannot_be_upgraded_is_refused_before_it_is_fetched(hub, get):
    repo = hub.repos[INSTRUCT]
    data = repo["ggml-model-q4_k.gguf"]
    repo["ggml-model-q5_k.gguf"] = data.replace(b"blk.1.ffn_up.3.weight", b"blk.1.ffn_uq.3.weight")
    repo["ggml-model-q6_k.gguf"] = data[:-100]
    try:
        with pytest.raises(ModelFileError, match="lacks expert 3 of 8"):
            get(quant="Q5_K")
        with pytest.raises(ModelFileError, match="do not lie one after another"):
            get(quant="Q6_K")
        repo["ggml-model-q2_k.gguf"] = b"<html>" + data[6:]
        with pytest.raises(ModelFileError, match="no GGUF file"):
            get(quant="Q2_K")
        assert left_behind() == []
        assert sum(hub.sent.values()) < len(data) / 2
    finally:
        for quant in "q5_k", "q6_k", "q2_k":
            del repo[f"ggml-model-{quant}.gguf"]


def test_a_wrong_checksum_is_found_and_nothing_is_taken_for_a_model(hub, get):
    hub.corrupt = True
    with pytest.raises(ChecksumError, match=r"ggml-model-q8_0\.gguf arrived with a wrong checksum"):
        get()
    assert left_behind() == []
    hub.corrupt = False
    assert get().gguf


def test_a_small_file_is_checked_by_gits_hash(hub, get):
    assert get("chinese-mixtral", kind="full", quant=None)
    for path in models_folder().rglob("model.json"):
        path.unlink()
    config = models_folder() / "chinese-mixtral" / "full" / "config.json"
    config.write_bytes(b"[]")  # as long as what the hub has
    with pytest.raises(ChecksumError, match=r"config\.json is not what the hub holds"):
        get("chinese-mixtral", kind="full", quant=None)


def test_another_file_of_the_same_name_is_left_alone(hub, get):
    place = models_folder() / "chinese-mixtral-instruct" / "Q8_0"
    place.mkdir(parents=True)
    (place / "ggml-model-q8_0.gguf").write_bytes(b"mine")
    with pytest.raises(ChecksumError, match="move it away"):
        get()
    assert (place / "ggml-model-q8_0.gguf").read_bytes() == b"mine"


def test_what_is_there_of_another_version_is_not_mixed_in(hub, get):
    place = models_folder() / "chinese-mixtral-instruct" / "Q8_0"
    place.mkdir(parents=True)
    data = hub.repos[INSTRUCT]["ggml-model-q8_0.gguf"]
    (place / ".ggml-model-q8_0.gguf.partial").write_bytes(b"\0" * len(data))
    (place / ".ggml-model-q8_0.gguf.ranges").write_text(f'[{len(data)}, "other"]\n0 {len(data)}\n')
    assert get().gguf.read_bytes() == data


@pytest.mark.parametrize(
    ("status", "error", "match"),
    [
        (401, HubAccessError, "log in"),
        (403, HubAccessError, "terms must be accepted"),
        (404, HubError, "HTTP 404"),
        (410, HubError, "HTTP 410"),
    ],
)
def test_a_refusal_is_said_at_once(hub, get, status, error, match):
    hub.refuse = status
    with pytest.raises(error, match=match):
        get()
    assert pulled_models() == []


def test_a_busy_server_is_asked_again(hub, get):
    hub.status, hub.n_status = 503, 3
    assert get().gguf
    hub.status, hub.n_status = 429, 2
    assert get("hfl/chinese-mixtral", kind="full", quant=None)
    hub.status, hub.n_status = 403, 1  # a link that ran out behind a redirect
    assert get(quant="Q4_K").gguf


def test_a_gated_model_needs_a_token_and_it_goes_nowhere_else(hub, get, monkeypatch):
    hub.token = "hf_secret"
    with pytest.raises(HubAccessError, match="MIXTRAL_RAG_HUB_TOKEN"):
        get()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")  # the hub's own; a mirror must not see it
    hub.requests.clear()
    with pytest.raises(HubAccessError):
        get()
    assert not any("Authorization" in headers for _, _, headers in hub.requests)
    monkeypatch.setenv("MIXTRAL_RAG_HUB_TOKEN", "hf_secret")
    hub.requests.clear()
    assert get().gguf
    told = {path.split("/")[1] for _, path, h in hub.requests if "Authorization" in h}
    asked = {path.split("/")[1] for _, path, _ in hub.requests}
    assert asked >= told | {"cdn"}
    assert "cdn" not in told


@pytest.mark.parametrize("cut_after", [None, 500_000])
def test_a_server_without_ranges_will_do(hub, get, cut_after):
    hub.has_ranges, hub.cut_after, hub.n_cuts = False, cut_after, 3
    data = hub.repos[INSTRUCT]["ggml-model-q8_0.gguf"]
    assert get().gguf.read_bytes() == data
    assert hub.sent["ggml-model-q8_0.gguf"] < 3 * len(data)
    assert not read_header(get(quant="Q4_K").gguf).has_old_expert_layout


def test_full_weights_are_the_shards_and_what_belongs_to_them(hub, get):
    model = get("Chinese-Mixtral", kind="full", quant=None)
    assert sorted(model.files) == sorted([*SHARDS, "config.json", "tokenizer.model"])
    assert all((model.folder / name).read_bytes() == data for name, data in SHARDS.items())
    assert not list(models_folder().parent.rglob("evil*"))
    assert (model.variant, model.gguf) == ("full", None)


def test_modelscope_serves_too(hub, get):
    model = get("chinese-mixtral", kind="lora", quant=None, hub="modelscope")
    assert sorted(model.files) == ["adapter_config.json", "adapter_model.safetensors"]
    with pytest.raises(HubError, match="HTTP 404"):
        get("chinese-mixtral", kind="full", quant=None, hub="modelscope")


def test_split_files_come_whole_or_not_at_all(hub, get):
    model = get("someone/split-GGUF")
    assert model.gguf.name == "big-Q8_0-00001-of-00002.gguf"
    assert len(model.files) == 2
    with pytest.raises(HubError, match="lacks others"):
        get("someone/torn-GGUF")


def test_without_a_quantisation_the_best_that_fits_is_taken(hub, get):
    assert get(quant=None, memory=64 << 30).variant in ("Q4_K", "Q8_0")
    with pytest.raises(ModelNotFoundError, match=r"the smallest, needs .* --quant"):
        get(quant=None, memory=1 << 20)


def test_names_that_are_not_known_offer_the_nearest(hub, get):
    with pytest.raises(ModelNotFoundError, match="did you mean chinese-mixtral-instruct or"):
        get("chinese-mixtral-instuct")
    with pytest.raises(ModelNotFoundError, match="did you mean Q4_K"):
        get(quant="Q4_X")
    with pytest.raises(ModelNotFoundError, match="is not on modelscope; it is on: hf"):
        get(hub="modelscope")
    with pytest.raises(HubError, match="no GGUF files; try --kind full"):
        get("someone/no-gguf")
    with pytest.raises(HubError, match="no full weights"):
        get("someone/no-gguf", kind="full", quant=None)
    with pytest.raises(HubError, match="HTTP 404"):
        get("someone/nothing")
    with pytest.raises(SettingsError, match="unknown kind"):
        get(kind="gptq")
    with pytest.raises(SettingsError, match="unknown hub"):
        get(hub="github")
    with pytest.raises(SettingsError, match="is no address"):
        get(endpoint="hf-mirror.com")
    with pytest.raises(ModelNotFoundError, match="mixtral-rag pull chinese-mixtral --quant Q2_K"):
        ChineseMixtral(model="chinese-mixtral:Q2_K")


def test_no_hub_at_all():
    with pytest.raises(HubError, match=r"cannot reach http://127\.0\.0\.1:9 .* --endpoint"):
        pull("chinese-mixtral-instruct", quant="Q4_K", endpoint="http://127.0.0.1:9")


def test_pulled_weights_go_by_their_names(hub, get):
    get("chinese-mixtral", kind="full", quant=None)
    get("chinese-mixtral", kind="lora", quant=None, hub="modelscope")
    assert locate_weights("chinese-mixtral", "full").name == "full"
    assert locate_weights("chinese-mixtral:lora", "lora").name == "lora"
    assert locate_weights("./x", "full") == Path("x")
    with pytest.raises(ModelNotFoundError, match="mixtral-rag pull mixtral-8x7b --kind full"):
        locate_weights("mixtral-8x7b", "full")


def test_a_disk_too_small_is_seen_before_anything_is_fetched(hub, get, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10, 10, 1000))
    with pytest.raises(ModelFileError, match=r"0\.0 GB free"):
        get()
    assert sum(hub.sent.values()) <= 2 << 20  # the header, for its layout


def test_a_folder_that_cannot_be_written_is_named(hub, get, tmp_path):
    (tmp_path / "models").write_text("a file")
    with pytest.raises(ModelFileError, match=f"cannot write {tmp_path}/models"):
        get(folder=tmp_path / "models")


def test_a_disk_that_fills_up_keeps_what_arrived(hub, get, monkeypatch):
    write, room = os.pwrite, [6_000_000]

    def pwrite(fd, data, at):
        room[0] -= len(data)
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data, at)

    monkeypatch.setattr(transfer.os, "pwrite", pwrite)
    with pytest.raises(ModelFileError, match=r"disk is full; .* what has arrived stays"):
        get()
    monkeypatch.setattr(transfer.os, "pwrite", write)
    before = hub.sent["ggml-model-q8_0.gguf"]
    model = get()
    assert hub.sent["ggml-model-q8_0.gguf"] - before < model.n_bytes - 3_000_000


@pytest.mark.parametrize("tail", ["15000000 1\0\0", "1500000016000000 17000000\n", "\0" * 40])
def test_a_journal_torn_by_a_power_loss_costs_its_last_line(hub, get, tail):
    place = models_folder() / "chinese-mixtral-instruct" / "Q8_0"
    place.mkdir(parents=True)
    data = hub.repos[INSTRUCT]["ggml-model-q8_0.gguf"]
    remote = transfer.RemoteFile("x", len(data), hashlib.sha256(data).hexdigest(), None, "")

    def write(start, end, then=""):
        target = transfer._Target(remote, place / "ggml-model-q8_0.gguf", None)
        target.open()
        target.write(start, data[start:end])
        target.record(start, end)
        with target.journal.open("a") as journal:
            journal.write(then)

    write(0, 10_000_000, tail)
    write(10_000_000, 15_000_000)  # the line after a torn one counts
    assert get().gguf.read_bytes() == data
    assert hub.sent["ggml-model-q8_0.gguf"] < len(data) - 15_000_000 + (2 << 20) + 65536


@pytest.mark.parametrize("journal", [b"", b"\0\0\0", b"\xff\xfe[]"])
def test_a_journal_that_is_none_means_from_the_start(hub, get, journal):
    place = models_folder() / "chinese-mixtral-instruct" / "Q8_0"
    place.mkdir(parents=True)
    (place / ".ggml-model-q8_0.gguf.ranges").write_bytes(journal)
    (place / ".ggml-model-q8_0.gguf.partial").write_bytes(b"x")
    assert get().gguf.read_bytes() == hub.repos[INSTRUCT]["ggml-model-q8_0.gguf"]


def test_ctrl_c_on_a_stalled_line_keeps_what_came(hub, get):
    hub.stall_after = 3 << 20  # beyond what is looked at for the header
    code = PULLING.replace("_SEGMENT = 1 << 20", "_SEGMENT = 8 << 20")
    process = subprocess.Popen(
        [sys.executable, "-c", code, hub.url, "Q8_0"], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    process.stdout.readline()
    while hub.sent["ggml-model-q8_0.gguf"] < 9 << 20:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.wait(10)
    process.stdout.close()
    place = models_folder() / "chinese-mixtral-instruct" / "Q8_0"
    lines = (place / ".ggml-model-q8_0.gguf.ranges").read_text().splitlines()[1:]
    kept = sum(int(end) - int(start) for start, end in map(str.split, lines))
    assert kept > 7_000_000


def test_connections_that_die_young_still_bring_the_file(hub, get):
    hub.cut_after = 150_000  # less than a buffer would hold
    assert get("chinese-mixtral", kind="full", quant=None)


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_K"])
def test_a_file_that_rots_on_the_disk_is_found(hub, get, quant):
    """Also in the new layout, against the checksum of the old."""
    model = get(quant=quant)
    assert damaged_files(model) == []
    with model.gguf.open("r+b") as file:
        file.seek(10_000_000)
        byte = file.read(1)
        file.seek(10_000_000)
        file.write(bytes([byte[0] ^ 1]))
    assert damaged_files(model) == [model.gguf]


def test_answers_that_are_not_what_was_asked_for_are_not_written(hub, get, monkeypatch):
    monkeypatch.setattr("mixtral_rag.weights.transfer._TRIES", 2)
    hub.shift = 1000
    with pytest.raises(HubError, match="another range than asked for"):
        get()
    hub.shift, hub.is_page = 0, True
    with pytest.raises(HubError, match="answers with a web page"):
        get()


def test_two_models_of_one_quantisation_are_not_mixed_up(hub, get, tiny_base, tiny_mixtral):
    one, other = tiny_base.read_bytes(), tiny_mixtral.read_bytes()
    hub.repos["someone/two"] = {"a-Q8_0.gguf": one, "bb-Q8_0.gguf": other, "model.json": b"{}"}
    assert get("someone/two", quant="a-Q8_0.gguf").gguf.read_bytes() == one
    assert get("someone/two", quant="bb-Q8_0.gguf").gguf.read_bytes() == other
    assert len(pulled_models()) == 2
    hub.repos["Someone/Chinese-Mixtral"] = {"a-Q4_0.gguf": one}  # not the catalogue's
    assert get("Someone/Chinese-Mixtral", quant="Q4_0").gguf.read_bytes() == one


def test_a_manifest_that_points_elsewhere_is_not_followed(hub, get):
    manifest = get().folder / "model.json"
    values = json.loads(manifest.read_text())
    for files in ({"/etc/hostname": ""}, {"../../x.gguf": ""}):
        manifest.write_text(json.dumps(values | {"files": files}))
        assert pulled_models() == []
    manifest.write_text(json.dumps(values | {"pulled_at": "today"}))
    assert pulled_models() == []


@pytest.mark.parametrize("endpoint", ["http://[::1", "https://host:abc", "https://", "ftp://x"])
def test_an_endpoint_that_is_no_address_is_refused(get, endpoint):
    with pytest.raises(SettingsError, match="is no address"):
        get(endpoint=endpoint)


def test_options_that_make_no_sense_are_refused(hub, get, monkeypatch):
    with pytest.raises(SettingsError, match="n_connections is 0"):
        get(n_connections=0)
    with pytest.raises(SettingsError, match="quant is for GGUF"):
        get("chinese-mixtral", kind="full", quant="Q4_K")
    monkeypatch.setenv("ALL_PROXY", "gopher://127.0.0.1:1")
    with pytest.raises(HubError, match="gopher"):
        get()
    monkeypatch.delenv("ALL_PROXY")
    monkeypatch.setenv("MIXTRAL_RAG_HUB_TOKEN", "two words")
    with pytest.raises(SettingsError, match="one ASCII word") as caught:
        get()
    assert "two words" not in str(caught.value)


def test_two_processes_do_not_write_one_file(hub, get):
    from filelock import FileLock

    place = models_folder() / "chinese-mixtral-instruct" / "Q8_0"
    place.mkdir(parents=True)
    with FileLock(place / ".lock"), pytest.raises(LockedError, match="another process"):
        get()


def test_a_damaged_or_incomplete_model_is_not_listed(hub, get, caplog):
    model = get()
    manifest = model.folder / "model.json"
    text = manifest.read_text()
    for bad in ("{", "[]", "{}", text[:-20], text.replace("repo", "rope")):
        manifest.write_text(bad)
        assert pulled_models() == []
    assert "pull the model again" in caplog.text
    manifest.write_text(text)
    assert len(pulled_models()) == 1
    model.gguf.unlink()
    assert pulled_models() == []


def test_from_the_command_line(hub):
    def run(*arguments):
        command = Path(sys.executable).with_name("mixtral-rag")
        environment = os.environ | {"MIXTRAL_RAG_ENDPOINT": hub.url, "COLUMNS": "100"}
        return subprocess.run(
            [command, *map(str, arguments)], env=environment, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip

    listed = run("models")
    assert "chinese-mixtral-instruct" in listed.stdout
    assert "fetch one: mixtral-rag pull" in listed.stdout
    pulled = run("pull", "chinese-mixtral-instruct", "--quant", "Q4_K")
    assert pulled.returncode == 0, pulled.stderr
    assert "mixtral-rag ask --model chinese-mixtral-instruct:Q4_K" in pulled.stdout
    assert "(answers `ask`)" in run("models").stdout
    assert run("models", "--check").stdout == "chinese-mixtral-instruct:Q4_K: intact\n"
    found = json.loads(run("models", "--json").stdout)["pulled"][0]
    assert found["variant"] == "Q4_K"
    Path("note.md").write_text("The red button stops the machine.")
    assert run("ingest", "note.md").returncode == 0
    asked = run("ask", "What stops the machine?", "--max-tokens", "4", "--n-ctx", "2048")
    assert (asked.returncode, asked.stderr) == (0, "")
    wrong = run("pull", "chinese-mixtral-instruct", "--quant", "Q9")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("mixtral-rag: hfl/")


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("ggml-model-q4_k.gguf", "Q4_K"),
        ("mixtral-8x7b-v0.1.Q5_K_M.gguf", "Q5_K_M"),
        ("Mixtral-8x7B-Instruct-v0.1-IQ3_XXS.gguf", "IQ3_XXS"),
        ("ggml-model-f16.gguf", "F16"),
        ("chinese-mixtral-q8_0-00001-of-00001.gguf", "Q8_0"),
        ("plain.gguf", "plain"),
    ],
)
def test_quantisations_are_read_off_file_names(name, quant):
    remote = transfer.RemoteFile(name, 1, None, None, "")
    assert choose_gguf([remote], None, 1 << 60, "x/y").variant == quant


def test_of_two_files_of_one_quantisation_the_plain_one_is_taken():
    names = ["m-q4_k-im.gguf", "m-q4_k.gguf", "m-q4_k_s.gguf"]
    files = [transfer.RemoteFile(name, 1, None, None, "") for name in names]

    def chosen(quant):
        return choose_gguf(files, quant, 0, "x/y").files[0].path

    assert chosen("Q4_K") == chosen("q4_k_m") == "m-q4_k.gguf"
    assert chosen("Q4_K_S") == "m-q4_k_s.gguf"
    assert chosen("m-q4_k-im.gguf") == chosen("Q4_K-im") == "m-q4_k-im.gguf"
    del files[1]
    assert chosen("Q4_K") == "m-q4_k-im.gguf"
