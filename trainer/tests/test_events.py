"""The event file over several attempts."""

import json
import threading
from pathlib import Path

import pytest

from fettle_trainer.events import EventLog, Heartbeat, peak_rss_bytes, rss_bytes


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_seq_goes_on_over_attempts_and_a_torn_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    first = EventLog(path, attempt=1)
    first.log("info", "grüße")
    first.write("stopped", reason="signal", step=0)
    first.close()
    with path.open("ab") as file:
        file.write(b'{"seq": 3, "type": "st')
    second = EventLog(path, attempt=2)
    second.log("info", "again")
    second.close()
    assert [(line["seq"], line["attempt"]) for line in lines(path)] == [(1, 1), (2, 1), (3, 2)]


@pytest.mark.parametrize("content", [b"", b'{"seq": 1', b"\n" * 0])
def test_file_with_no_whole_line_begins_at_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(content)
    log = EventLog(path, attempt=1)
    log.log("info", "first")
    log.close()
    assert [line["seq"] for line in lines(path)] == [1]


def test_long_last_line_is_found(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, attempt=1)
    log.log("info", "short")
    log.log("info", "x" * 200_000)
    log.close()
    again = EventLog(path, attempt=2)
    again.log("info", "next")
    again.close()
    assert [line["seq"] for line in lines(path)] == [1, 2, 3]


def test_nan_is_no_json(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", attempt=1)
    with pytest.raises(ValueError, match="JSON compliant"):
        log.write("step", train_loss=float("nan"))
    log.log("info", "whole")
    log.close()
    assert [line["seq"] for line in lines(tmp_path / "events.jsonl")] == [1]


def test_heartbeat_tells_step_and_memory(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, attempt=1)
    beaten = threading.Event()
    write = log.write

    def listening(kind: str, **content: object) -> None:
        write(kind, **content)
        beaten.set()

    log.write = listening  # type: ignore[method-assign]
    with Heartbeat(log, 0.01) as heartbeat:
        heartbeat.step = 7
        assert beaten.wait(30)
    log.close()
    beat = lines(path)[-1]
    assert beat["type"] == "heartbeat"
    assert beat["step"] == 7
    assert 0 < rss_bytes() <= peak_rss_bytes() * 2
    assert beat["phase"] == "starting"


def test_no_beat_comes_after_what_ended_the_attempt(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", attempt=1)
    beaten = threading.Event()
    write = log.write

    def listening(kind: str, **content: object) -> None:
        write(kind, **content)
        beaten.set()

    log.write = listening  # type: ignore[method-assign]
    with Heartbeat(log, 0.001) as heartbeat:
        assert beaten.wait(30)
        heartbeat.end()
        log.write("stopped", reason="signal", step=7)
        beaten.clear()
        # It would come within a millisecond.
        assert not beaten.wait(0.2)
    log.close()
    assert lines(tmp_path / "events.jsonl")[-1]["type"] == "stopped"


def test_heartbeat_goes_on_and_tells_for_how_long_the_work_stands(tmp_path: Path) -> None:
    """The clock is the test's: a beat after 40 s without a mark says 40 s."""
    path = tmp_path / "events.jsonl"
    log = EventLog(path, attempt=1)
    now = 100.0
    heartbeat = Heartbeat(log, 3.0, lambda: now)

    def passes(seconds: float) -> None:
        nonlocal now
        now += seconds
        heartbeat.beat()

    passes(2)
    heartbeat.mark("training", 64)
    passes(4)
    heartbeat.mark("training", 64)
    passes(1)
    heartbeat.mark("training", 256)
    passes(0)
    heartbeat.mark("training", 128)
    passes(40)
    heartbeat.mark("verifying")
    passes(3)
    log.close()
    assert [(beat["phase"], beat["idle_s"], beat["expected_s"]) for beat in lines(path)] == [
        ("starting", 2, None),
        # The pace of a phase is known after its first piece.
        ("training", 4, None),
        ("training", 1, 4),
        # Four times as large as the largest so far.
        ("training", 0, 16),
        ("training", 40, 4),
        ("verifying", 3, None),
    ]
