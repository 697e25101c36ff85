"""A watch over the processes that compute: Triton notices that one has died, fails its requests, and leaves it so.

Triton 2.51 does not start a dead stub again, and goes on calling its model ready. So whoever watches unloads the model,
which makes every ensemble that names it unready at once, and loads it again, which brings them back.
"""

from __future__ import annotations

import http
import json
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from vizwiz_client.contract.tensors import ENSEMBLES

STUB = "triton_python_backend_stub"  # the program of Triton that runs a model of its Python backend
INTERVAL_S = 0.5
ROUND = 10  # looks from one comparison with the models that have to be there to the next
PATIENCE_S = 5.0
RETRY_S = 5.0  # after a model that did not load again

Ask = Callable[[str, str], tuple[int, bytes]]  # method, path -> status, body; OSError when the server does not answer


class Watch:
    """A thread that notices dead stubs of a tritonserver and has their models loaded again.

    Args:
        server: the process id of tritonserver, whose children the stubs are.
        models: the folder of the models, as the stubs' command lines have it.
        wanted: the models that ensembles name, as they are served: others may stay away.
        tidy: called at each look, for models that have been loaded since.
        ask: sends Triton a request for model control.
        report: told of each death and of what came of it.
    """

    def __init__(
        self,
        server: int,
        models: Path,
        wanted: Callable[[], Collection[str]],
        tidy: Callable[[], None],
        ask: Ask,
        report: Callable[[str], None],
    ) -> None:
        self._server = server
        self._models = models
        self._wanted = wanted
        self._tidy = tidy
        self._ask = ask
        self._report = report
        self._stubs: dict[int, tuple[str, str]] = {}  # of those that lived when last looked at: pid -> instance, model
        self._broken: dict[str, float] = {}  # model -> when to try it next, time.monotonic()
        self._rest = 0  # looks until the next comparison with what is wanted
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stub watch", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._stubs = stubs(self._server, self._models)
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer; a model that is being loaded again is waited for, but not for long."""
        self._end.set()
        if self._thread.is_alive():  # not where a signal came just before it started
            self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        while not self._end.wait(INTERVAL_S):
            for check in (self._tidy, self._look):
                with suppress(Exception):  # the server is gone, or answers strangely: the next look may find it well
                    check()

    def _look(self) -> None:
        living = stubs(self._server, self._models)
        suspects = {model for pid, (_, model) in self._stubs.items() if pid not in living}
        if not self._rest:  # one that died before it was first seen is missed by comparing
            suspects |= {*self._wanted()} - {model for _, model in living.values()}
            self._rest = ROUND  # only now: at the start the server may not answer yet
        self._rest -= 1
        if suspects:
            self._unload_dead(suspects)
        self._stubs = living
        for model in [model for model, when in self._broken.items() if when <= time.monotonic()]:
            if model in self._wanted():
                self._revive(model)
            else:
                del self._broken[model]

    def _unload_dead(self, suspects: Collection[str]) -> None:
        """Unload those of ``suspects`` that are called ready and lack a process; others were unloaded, or replaced."""
        states = self._states()
        living = stubs(self._server, self._models)  # later than the states: what was ready has been started by now
        instances = {instance for instance, _ in living.values()}
        for model in suspects:
            lost = {instance for instance, name in self._stubs.values() if name == model} - instances
            if states.get(model) == "READY" and (lost or model not in {name for _, name in living.values()}):
                self._broken[model] = 0
                self._ask("POST", f"repository/models/{model}/unload")
                self._report(f"a process of {model} died: loading the model again")  # last: it may not be heard

    def _revive(self, model: str) -> None:
        status, body = self._ask("POST", f"repository/models/{model}/load")
        if status == 200:
            del self._broken[model]
            self._report(f"{model} is loaded again")
        else:
            self._broken[model] = time.monotonic() + RETRY_S
            self._report(f"{model} does not load ({body.decode(errors='replace')}): trying again in {RETRY_S:.0f} s")

    def _states(self) -> dict[str, str]:
        return {entry["name"]: entry.get("state", "") for entry in json.loads(self._ask("POST", "repository/index")[1])}


class Served:
    """The models that ensembles name as they are served, or were when they last were.

    The repository may be ahead of the server: an export waits there for a reload.
    """

    def __init__(self, ask: Ask, ensembles: Callable[[], Collection[str]] = lambda: ENSEMBLES) -> None:
        """Of the server that ``ask`` asks; nothing is known yet."""
        self._ask = ask
        self._ensembles = ensembles
        self._steps: dict[str, list[str]] = {}

    def __call__(self) -> set[str]:
        """Their names. Raises OSError or HTTPException: the server does not answer."""
        for name in self._ensembles():
            status, body = self._ask("GET", f"models/{name}/config")
            if status == http.HTTPStatus.OK:
                self._steps[name] = [step["model_name"] for step in json.loads(body)["ensemble_scheduling"]["step"]]
        return {model for steps in self._steps.values() for model in steps}


def stubs(server: int, models: Path) -> dict[int, tuple[str, str]]:
    """The living stubs among the children of the process ``server``: pid -> (name of the instance, of its model)."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1] != str(server):
                continue
            # of a zombie it is empty; https://github.com/triton-inference-server/python_backend, pb_stub.cc, main()
            command = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:  # it ended meanwhile
            continue
        if command[0].endswith(STUB):
            found[int(folder.name)] = command[8], Path(command[1]).relative_to(models).parts[0]
    return found
