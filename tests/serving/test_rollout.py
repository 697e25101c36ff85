"""Rollouts on a live server: clients do not notice a good head, and a broken one changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import InferenceServerClient

from export import repository as model_repository
from serving import ServingError
from serving import __main__ as command
from serving import rollout as rollout_module
from serving.access import find_server
from serving.golden import read_golden
from serving.repository import ENCODERS_KEY, MADE_FROM_FILE, locked, read_ensemble, steps
from serving.rollout import Control, Rollout, rollout
from serving.server import EmbeddedTriton
from tests.serving.broken_heads import BROKEN, FIRST, HEADS, SECOND, THIRD, change_golden
from tests.serving.load import Load, Reply, ask_ensemble, errors
from tests.serving.processes import eventually, is_ready
from tests.serving.tiny_repository import (
    IMAGE_MODEL,
    SIDE,
    TEXT_MODEL,
    change_config,
    golden_inputs,
    head_answer,
    write_head,
)
from vizwiz_client.contract import tensors


@dataclass(frozen=True)
class Served:
    """A server of a repository that the test may change."""

    repository: Path
    server: EmbeddedTriton
    sound: Path  # a copy of the repository as it was at first

    def restore(self) -> None:
        """Make the repository what it was; a file that was not changed is not touched."""
        for path in sorted(self.repository.rglob("*"), reverse=True):
            if not (self.sound / path.relative_to(self.repository)).exists():
                path.rmdir() if path.is_dir() else path.unlink()
        for path in self.sound.rglob("*"):
            copy = self.repository / path.relative_to(self.sound)
            if path.is_file() and not (copy.is_file() and copy.read_bytes() == path.read_bytes()):
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)

    def roll_out(self, to: str | None = None, report: Callable[[str], None] = lambda line: None) -> Rollout:
        return rollout(self.server.grpc_url, to=to and to.removeprefix(tensors.HEAD_PREFIX), report=report)

    def feed(self) -> Any:
        return read_golden(self.repository, FIRST).feed([tensors.ImageInput(tensors.IMAGE.name, SIDE)])

    def head(self) -> str:
        """The head that answers."""
        with InferenceServerClient(self.server.grpc_url) as client:
            return ask_ensemble(client, read_ensemble(self.repository), self.feed(), 3).head

    def referenced(self) -> set[str]:
        """The models that the repository's ensemble references."""
        return {*steps(read_ensemble(self.repository))}

    def states(self) -> dict[str, str]:
        return {name: state for name, state in self.control().states().items() if state}

    def control(self) -> Control:
        server = find_server(self.server.grpc_url)
        assert server is not None
        return Control(server.grpc, server.key)

    def name(self, head: str) -> None:
        """What an export commits: the ensemble references ``head``."""
        old = next(step for step in self.referenced() if step.startswith(tensors.HEAD_PREFIX))
        path = self.repository / tensors.ENSEMBLE / "config.pbtxt"
        path.write_text(path.read_text().replace(old, head))


@pytest.fixture(scope="module")
def server_with_heads(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    sound = Path(shutil.copytree(tiny_repository, tmp_path_factory.mktemp("rollouts") / "sound"))
    for head in (SECOND, THIRD):
        write_head(sound / head, *HEADS[head])
    repository = Path(shutil.copytree(sound, sound.with_name("models")))
    with EmbeddedTriton(repository) as server:
        yield Served(repository, server, sound)


@pytest.fixture
def served(server_with_heads: Served) -> Iterator[Served]:
    """The server, whose repository the test may change: all is as it was afterwards."""
    yield server_with_heads
    server_with_heads.restore()
    server_with_heads.roll_out()


def check(reply: Reply) -> None:
    """A reply is one head's alone: its labels, its values."""
    labels, factor = HEADS[reply.head]
    expected = dict(zip(labels, head_answer(*golden_inputs(), len(labels), factor)[0], strict=True))
    best = dict(sorted(expected.items(), key=lambda item: -item[1])[:3])
    assert reply.answers == pytest.approx(best, abs=0.01)


@pytest.mark.parametrize("rollouts", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_rollouts_under_load_fail_no_request_and_mix_no_answers(served: Served, rollouts: int) -> None:
    """Changes of vocabulary all of them; forth by what an export does, and back by a digest."""
    returned: list[tuple[float, str]] = []
    with Load(served.server.grpc_url, served.repository, served.feed()) as load:
        for number in range(rollouts):
            load.wait_for(12)
            head = [SECOND, FIRST, THIRD][number % 3]
            if number % 2:
                done = served.roll_out(to=head)
            else:
                served.name(head)
                done = served.roll_out()
            returned.append((time.monotonic(), head))
            assert (done.head, done.loaded) == (head, [head])
            assert len(done.unloaded) == 1
        load.wait_for(12)
    assert errors(load.replies) == set()
    for reply in load.replies:
        check(reply)
        earlier = [head for when, head in returned if when <= reply.sent]
        later = [head for when, head in returned if when > reply.sent]
        assert reply.head in {(earlier or [FIRST])[-1], *later[:1]}, "a stale answer"
    assert {reply.head for reply in load.replies} == {*[head for _, head in returned], FIRST}
    assert sorted(name for name in served.states() if served.states()[name] == "READY") == sorted(
        {tensors.ENSEMBLE, *served.referenced()}
    )


@pytest.mark.parametrize("broken", [BROKEN[:3], pytest.param(BROKEN[3:], marks=pytest.mark.slow)])
def test_a_broken_head_is_refused_before_the_ensemble_changes(
    served: Served, broken: list[tuple[Callable[[Path], None], str]]
) -> None:
    loads = served.server.log.read_text().count(f"loading: {tensors.ENSEMBLE}")
    with Load(served.server.grpc_url, served.repository, served.feed()) as load:
        for number, (damage, reason) in enumerate(broken):
            damage(served.repository)
            exported = bool(number % 2)  # else the repository names it only if it is accepted
            if exported:
                served.name(SECOND)
            with pytest.raises(ServingError) as caught:
                served.roll_out(None if exported else SECOND)
            assert reason in str(caught.value)
            assert f"refused {SECOND}: " in str(caught.value)
            assert "The ensemble was not changed, the server serves as before" in str(caught.value)
            assert (SECOND in served.referenced()) == exported, "the repository was changed"
            assert is_ready(served.server.http_url)
            assert served.states().get(SECOND) != "READY", "the refused head was left in the server"
            served.restore()
    assert errors(load.replies) == set()
    assert {reply.head for reply in load.replies} == {FIRST}
    assert served.server.log.read_text().count(f"loading: {tensors.ENSEMBLE}") == loads
    served.roll_out(SECOND)  # with nothing broken it goes through
    assert served.head() == SECOND


def test_types_that_are_nearly_tied_may_come_in_either_order(served: Served) -> None:
    """Each probability is within the tolerance, which is 0.01 here; their order says nothing."""

    def reorder(expected: dict[str, Any]) -> None:
        expected["answer_types"].reverse()
        for each in expected["answer_types"]:
            each["confidence"] += 0.009

    change_golden(served.repository, reorder)
    served.roll_out(SECOND)
    assert served.head() == SECOND


def test_an_ensemble_that_does_not_match_its_models_is_rolled_back(served: Served) -> None:
    """It cannot come from an export; Triton drops an ensemble that does not load, so the old one is loaded again."""
    served.name(SECOND)
    change_config(served.repository / tensors.ENSEMBLE, lambda config: config.output[2].dims.append(7))
    with pytest.raises(ServingError, match=r"inconsistent shape.*; the server serves as before"):
        served.roll_out()
    assert served.head() == FIRST
    assert served.states().get(SECOND) != "READY"


class Steps:
    """The calls that a rollout makes, counted; one of them can raise ``error`` before it does anything, or after."""

    SEAMS = (
        *((Control, name) for name in ("states", "config", "load", "infer", "unload")),
        *((rollout_module, name) for name in ("verify_digests", "read_golden", "input_tensors", "write_config")),
    )

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arm(0)
        for owner, name in self.SEAMS:
            monkeypatch.setattr(owner, name, self._counted(name, getattr(owner, name)))

    def arm(self, step: int, *, after: bool = False, error: BaseException | None = None) -> None:
        """Let the call number ``step``, from 1, of the next rollout raise."""
        self.names: list[str] = []
        self._step, self._after, self._error = step, after, error

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.names.append(name)
            error = self._error if len(self.names) == self._step else None
            if error and not self._after:
                raise error
            result = function(*arguments, **options)
            if error:
                raise error
            return result

        return call


ERRORS = (KeyError("x"), StopIteration(), TypeError("x"), OSError(28, "No space left"), KeyboardInterrupt())


@pytest.mark.parametrize(
    ("after", "stride"),
    [
        pytest.param(True, 6, id="some"),
        pytest.param(True, 1, id="after", marks=pytest.mark.slow),
        pytest.param(False, 1, id="before", marks=pytest.mark.slow),
    ],
)
def test_an_exception_at_any_step_rolls_back(
    served: Served, after: bool, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps_of = Steps(monkeypatch)
    served.roll_out(SECOND)
    done = steps_of.names.index("unload") - 1  # before `states`, which finds what is stale: the new head answers
    assert steps_of.names[done] == "states"
    steps_of.arm(0)
    served.roll_out(FIRST)
    for step in range(done, 0, -stride):
        error = ERRORS[step % len(ERRORS)]
        steps_of.arm(step, after=after, error=error)
        with pytest.raises((ServingError, type(error))):  # as it is where nothing has been loaded yet
            served.roll_out(SECOND)
        name = steps_of.names[step - 1]
        steps_of.arm(0)
        assert served.head() == FIRST, f"step {step}, {name}"
        assert served.states().get(SECOND) != "READY", f"step {step}, {name}"
        assert SECOND not in served.referenced()
    steps_of.arm(0)
    served.roll_out(SECOND)
    assert served.head() == SECOND


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_rolls_back(
    served: Served, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = signal.getsignal(number)

    def say(line: str) -> None:
        said.append(line)
        if line == f"loading {tensors.ENSEMBLE}":  # its configuration references the new head already
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)

    said: list[str] = []
    monkeypatch.setattr(command, "_report", say)
    assert command.main(["reload", "--url", served.server.grpc_url, "--to", SECOND]) == 130
    assert said[-2:] == ["interrupted: the server serves as before", "stopped"]
    assert SECOND not in served.referenced()
    assert served.head() == FIRST
    assert served.states().get(SECOND) != "READY"
    assert signal.getsignal(number) == handler


def test_a_finished_rollout_is_not_reported_as_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: object) -> list[str]:
        raise ServingError("the server at X: Deadline Exceeded")

    said: list[str] = []
    monkeypatch.setattr(rollout_module, "_stale_models", late)
    assert served.roll_out(SECOND, report=said.append).unloaded == []
    assert "the new head is served, but old models remain loaded" in said[-1]
    assert served.head() == SECOND


def test_new_encoders_come_with_their_head_and_go_with_it(served: Served) -> None:
    other = "clip_image_0000000000ff"
    shutil.copytree(served.repository / IMAGE_MODEL, served.repository / other)
    change_config(served.repository / other, lambda config: setattr(config, "name", other))
    made_from = json.dumps({ENCODERS_KEY: [[other, TEXT_MODEL]]})
    (served.repository / SECOND / MADE_FROM_FILE).write_text(made_from)
    done = served.roll_out(SECOND)
    assert done.loaded == [other, SECOND]
    assert done.unloaded == [IMAGE_MODEL, FIRST]
    assert served.head() == SECOND
    shutil.rmtree(served.repository / IMAGE_MODEL)
    with pytest.raises(ServingError, match=f"encoder {IMAGE_MODEL} that {FIRST} was fitted on is no longer in "):
        served.roll_out(FIRST)
    assert served.head() == SECOND


def test_the_next_rollout_unloads_what_a_killed_one_left(served: Served) -> None:
    served.control().load(THIRD)
    assert served.states()[THIRD] == "READY"
    assert served.roll_out(SECOND).unloaded == [FIRST, THIRD]


def test_a_head_that_is_not_there_or_not_clear(served: Served) -> None:
    with pytest.raises(ServingError, match=r"no heads in .* begins with 'abc': there are 000000000007, 00000000beef, "):
        served.roll_out("abc")
    with pytest.raises(ServingError, match=r"2 heads in .* have a digest that begins with '0000'"):
        served.roll_out("0000")


def test_a_rollout_and_an_export_wait_for_each_other(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    def export() -> None:
        with model_repository.lock(served.repository):
            pass

    said: list[str] = []
    with ThreadPoolExecutor() as pool:
        with locked(served.repository, said.append):
            exporting = pool.submit(export)
            assert eventually(lambda: "waiting for another export" in capsys.readouterr().err)
            assert not exporting.done()
        exporting.result(timeout=30)
        assert said == []
        with model_repository.lock(served.repository):
            rolling_out = pool.submit(rollout, served.server.grpc_url, report=said.append)
            assert eventually(lambda: said)
            assert said == [f"waiting for another export, pruning or rollout of {served.repository} to end"]
            assert not rolling_out.done()
        assert str(rolling_out.result(timeout=60)).endswith(": nothing was new")


def test_without_the_key_nothing_changes(served: Served) -> None:
    with pytest.raises(ServingError, match="it needs another admin key: set the environment variable VIZWIZ_SERVING"):
        rollout(served.server.grpc_url, served.repository, key="not-the-key-of-this-server", to=SECOND)
    assert served.head() == FIRST


def test_the_key_of_a_server_that_was_found_comes_first(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variable may hold the key of a container."""
    monkeypatch.setenv("VIZWIZ_SERVING_ADMIN_KEY", "the-key-of-another-server-" + "x" * 20)
    served.roll_out(SECOND)
    assert served.head() == SECOND


def test_a_server_that_is_not_there(tiny_repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["reload", "--url", "localhost:1", "--repository", str(tiny_repository)]) == 1
    assert "serving: error: the server at localhost:1: failed to connect" in capsys.readouterr().err


def test_the_proxy_of_the_environment_is_not_asked(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody is there
    with Control(served.server.grpc_url, None) as control:
        assert control.config(tensors.ENSEMBLE).name == tensors.ENSEMBLE
