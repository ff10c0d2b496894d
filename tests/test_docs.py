"""What the documentation says is true: its examples run, its commands exist."""

import doctest
import pkgutil
import re
from importlib import import_module
from pathlib import Path

import pytest

import fastvq
from fastvq import cli

CHECKOUT = Path(__file__).parent.parent
README = (CHECKOUT / "README.md").read_text("utf-8")
MODULES = sorted(
    name
    for _, name, is_package in pkgutil.walk_packages(fastvq.__path__, "fastvq.")
    # The compiled modules have no examples; those of other levels must not be imported.
    if not name.startswith("fastvq._kernels") or is_package
)


@pytest.mark.parametrize("name", ["fastvq", *MODULES])
def test_docstring_examples(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if name.startswith("fastvq.neural"):
        pytest.importorskip("torch", reason='needs PyTorch: pip install "fastvq[torch]"')
    module = import_module(name)
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert results.failed == 0


def readme_blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_example_of_the_readme_prints_what_it_says(run_python):
    example = next(block for block in readme_blocks("python") if block.startswith("import"))
    assert run_python(example).stdout == readme_blocks("text")[0]


def test_the_commands_of_the_readme_exist():
    project = (CHECKOUT / "pyproject.toml").read_text("utf-8")
    commands = [block for block in readme_blocks("bash") if "pip install" in block]
    assert len(commands) == 2
    for command in commands:
        (extra,) = re.findall(r'pip install "\.\[(\w+)\]"', command)
        (requirements,) = re.findall(rf"^{extra} = \[(.*?)\]$", project, re.DOTALL | re.MULTILINE)
        program, *arguments = re.findall(r"&& \.venv/bin/(\S+)(?: (\w+))?$", command.strip())[0]
        if program == "fastvq":
            assert callable(cli._parser().parse_args(arguments).run)
        else:
            assert f'"{program}' in requirements
