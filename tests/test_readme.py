"""What the README tells people to type exists, and every verb that exists is told of."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from privft.cli import _COMMANDS, main
from privft.config import parse_config
from privft.strictyaml import read_text, validate
from privft.sweep import Sweep

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every line of a code block, and every piece of inline code, that calls privft."""
    lines = [
        line.split("#")[0].strip()
        for language, block in BLOCKS
        if not language
        for line in block.replace("\\\n", " ").splitlines()
    ]
    inline = re.findall(r"`(privft [^`]+)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    return sorted({line for line in [*lines, *inline] if line.startswith("privft ")})


@pytest.mark.parametrize("line", commands())
def test_every_command_in_the_readme_exists_with_its_options(line: str) -> None:
    words = shlex.split(line)[1:]
    context = click.Context(main)
    command: click.Command = main
    options = {name for parameter in main.params for name in parameter.opts}
    while words and isinstance(command, click.Group):
        if words[0] == "VERB":
            return
        if words[0].startswith("-"):
            assert words[0] in {*options, "--help"}, line
            words = words[1:]
            continue
        found = command.get_command(context, words[0])
        assert found is not None, f"{line}: there is no {words[0]}"
        command, words = found, words[1:]
    known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    for word in words[: words.index("--")] if "--" in words else words:  # behind it: not ours
        if word.startswith("-") and not word.lstrip("-").replace(".", "").isdigit():
            assert word in known, f"{line}: {command.name} has no {word}"


def test_every_verb_is_in_the_readme() -> None:
    for verb in _COMMANDS:
        assert re.search(rf"privft {verb}\b|`{verb}`", README), verb


def test_the_configs_in_the_readme_are_valid() -> None:
    configs = [block for language, block in BLOCKS if language == "yaml"]
    assert configs
    for text in configs:
        body = yaml.safe_load(text)
        assert isinstance(body, dict)
        if "sweep" in body:
            validate(Sweep, read_text(text, source="README")).selection()
        else:
            parse_config(text, source="README")


def test_the_readme_holds_no_unfinished_places() -> None:
    assert not re.search(r"@[A-Z]+@|TODO|TBD", README)
