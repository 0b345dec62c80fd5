"""What the lab remembers between commands, and who may work on it at a time."""

import subprocess
import sys
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from semantik_lab import state
from semantik_lab.errors import LabError

LAB = Path(__file__).resolve().parents[2] / "lab"


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(state, "STATE", tmp_path)
    return tmp_path


def test_a_record_comes_back_as_it_was_saved(tmp_path: Path):
    record = state.Record(
        IPv4Network("10.77.3.0/24"), tmp_path / "t.toml", ("head", "gpu1"), tmp_path / "hosts.yml"
    )
    record.save(state.Paths("mine"))
    assert state.load("mine") == record
    assert state.labs() == ["mine"]


def test_an_unknown_lab_is_none_or_an_error():
    assert state.load("mine") is None
    with pytest.raises(LabError, match="there is no lab mine; `lab/lab list`"):
        state.require("mine")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"subnet": "10.77.0.0/24"}'])
def test_a_damaged_record_says_how_to_go_on(content: str):
    path = state.Paths("mine").record
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(LabError, match=r"is damaged .*lab/lab destroy --name mine"):
        state.load("mine")


def test_the_second_command_waits_for_the_first(elsewhere: Path, capfd: pytest.CaptureFixture[str]):
    holder = (
        f"import sys; sys.path.insert(0, {str(LAB)!r})\n"
        "from pathlib import Path\nfrom semantik_lab import state\n"
        f"with state.lock(Path({str(elsewhere / '.mine.lock')!r}), 'lab mine'):\n"
        "    print('held', flush=True); sys.stdin.readline()\n"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    # Killed rather than ended: the lock must not outlive its holder.
    second = subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert second.stderr is not None
    assert second.stderr.readline() == f"waiting for process {first.pid}, which works on lab mine\n"
    first.kill()
    assert second.wait(10) == 0
    first.wait(10)
    first.stdout.close()
    second.stderr.close()


def test_names_that_would_leave_the_state_directory_are_refused():
    with pytest.raises(LabError, match="does not fit"), state.locked("../other"):
        pass
