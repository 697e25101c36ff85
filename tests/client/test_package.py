"""What the package offers, says about itself, and never imports."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vizwiz_client
from tests.client.fake_server import FakeServer
from vizwiz_client.contract import errors, streams, tensors, tokenizer
from vizwiz_client.contract import image as image_module

ROOT = Path(__file__).parents[2]
HEAVY = ["torch", "torchvision", "onnx", "onnxruntime", "clip", "matplotlib", "sklearn"]


def loaded_by(program: str, *arguments: str) -> set[str]:
    """Run ``program`` in a new interpreter; return which modules it loaded."""
    program += "\nimport sys, json; print(); print(json.dumps(list(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


class TestImports:
    def test_importing_loads_next_to_nothing(self) -> None:
        loaded = loaded_by("import vizwiz_client, vizwiz_client.cli")
        assert "vizwiz_client.cli" in loaded
        assert not loaded & {
            *HEAVY,
            "tritonclient",
            "grpc",
            "ftfy",
            "regex",
            "numpy",
            "PIL",
            "asyncio",
            "logging",
            "tqdm",
        }

    def test_asking_loads_nothing_heavy(self, fake_server: FakeServer, photos: list[Path]) -> None:
        program = "import sys; from vizwiz_client.cli import main; assert main(sys.argv[1:]) == 0"
        loaded = loaded_by(program, "ask", str(photos[0]), "what is this?", "--url", fake_server.url)
        assert "tritonclient.grpc" in loaded  # it did ask
        assert not loaded & {*HEAVY, "ftfy", "regex", "tqdm"}

    @pytest.mark.parametrize("module", ["onnx", "sklearn"])
    def test_this_test_can_fail(self, module: str) -> None:
        pytest.importorskip(module)  # the wheel is tested without
        assert loaded_by(f"import vizwiz_client, {module}") & set(HEAVY)

    def test_no_thread_starts_at_import(self) -> None:
        assert loaded_by("import vizwiz_client, threading; assert threading.active_count() == 1")


class TestPublicNames:
    def test_all(self) -> None:
        public = {
            name
            for name, value in vars(vizwiz_client).items()
            if not name.startswith("_") and not inspect.ismodule(value)
        }
        assert public == set(vizwiz_client.__all__)
        assert vizwiz_client.__all__ == sorted(vizwiz_client.__all__)

    @pytest.mark.parametrize("name", vizwiz_client.__all__)
    def test_everything_public_is_documented(self, name: str) -> None:
        thing = getattr(vizwiz_client, name)
        members = [value for key, value in vars(thing).items() if not key.startswith("_")]
        for item in [thing, *(value for value in members if callable(value) or isinstance(value, property))]:
            assert inspect.getdoc(item), item

    @pytest.mark.parametrize("kind", [vizwiz_client.VizwizClient, vizwiz_client.AsyncVizwizClient])
    def test_every_parameter_is_documented(self, kind: type) -> None:
        documented = [
            (kind, kind.__init__),
            *((method, method) for name, method in vars(kind).items() if name[0] != "_"),
        ]
        for documentation, function in documented:
            for name in list(inspect.signature(function).parameters)[1:]:
                assert re.search(rf"^ +{name}: ", inspect.getdoc(documentation) or "", re.MULTILINE), (function, name)

    @pytest.mark.parametrize("module", [errors, image_module, streams, tensors, tokenizer])
    def test_the_contract_is_documented(self, module) -> None:
        for name, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_"):
                assert inspect.getdoc(value), name

    def test_version_is_the_projects(self) -> None:
        stated = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
        assert stated is not None
        assert stated.group(1) == vizwiz_client.__version__

    def test_the_error_tree_is_drawn_as_it_is(self) -> None:
        drawn = re.findall(r"^(.*?)([A-Z]\w+)", errors.__doc__.split("\n\n", 1)[1], re.MULTILINE)
        parents: dict[str, str] = {}
        branch: list[str] = []
        for indent, name in drawn:
            branch = [*branch[: len(indent) // 4], name]
            parents[name] = branch[-2] if len(branch) > 1 else "Exception"
        actual = {name: value.__bases__[0].__name__ for name, value in vars(errors).items() if inspect.isclass(value)}
        assert parents == actual


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a\x1b[2J\x07.jpg", r"a\x1b[2J\x07.jpg"),
        ("a\nError: b\r\tc\x7f\x9b", r"a\nError: b\r\tc\x7f\x9b"),
        ("\u202egpj.exe\u2028", r"\u202egpj.exe\u2028"),
        ("a\udcff", r"a\udcff"),
        ("señor 🍮 👩\u200d🚀 a\\b", "señor 🍮 👩\u200d🚀 a\\b"),  # a joiner inside an emoji, and a backslash, stay
    ],
)
def test_the_text_of_an_error_has_no_control_characters(text: str, escaped: str) -> None:
    assert str(errors.ImageError(text)) == errors.escape_controls(text) == escaped
