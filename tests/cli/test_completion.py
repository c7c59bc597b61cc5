"""The completion scripts, read by a real bash and asked what it would offer."""

from __future__ import annotations

import shlex

import pytest

from tests.cli.shell import bash, environment
from towpath.cli.completion import script
from towpath.cli.verbs import VERBS

ENV = environment(None)

ASK = """
source <(towpath completion bash) || exit 3
complete -p towpath >/dev/null || exit 4
COMP_WORDS=({words})
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_shtab_towpath towpath "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD - 1]}}" 2>/dev/null
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def offered(*words: str, env: dict[str, str] = ENV) -> set[str]:
    """What bash offers for the last of the words."""
    result = bash(ASK.format(words=shlex.join(["towpath", *words])), env=env)
    assert (result.returncode, result.stderr) == (0, b"")
    return set(result.stdout.decode().split())


def test_verbs_are_offered() -> None:
    assert offered("") == set(VERBS)
    assert offered("un") == {"undeclare", "unbind"}


def test_options_and_their_values_are_offered() -> None:
    assert {"--count", "--json", "--socket"} <= offered("sub", "x", "--")
    assert offered("declare", "x", "--kind", "") == {"topic", "queue", "state", "service"}
    assert offered("bind", "x", "fifo:/x", "--direction", "o") == {"out"}
    assert "--check-config" in offered("serve", "--")
    assert offered("completion", "") == {"bash", "zsh", "tcsh"}


def test_without_a_daemon_no_channels_are_offered_and_nothing_is_said() -> None:
    assert offered("pub", "") == set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_each_script_asks_for_the_channels_and_offers_every_verb(shell: str) -> None:
    text = script(shell)
    assert "towpath channels --names" in text
    for verb in VERBS:
        assert verb in text


def test_the_script_is_valid_to_bash_alone() -> None:
    assert bash(f"bash -n <(printf %s {shlex.quote(script('bash'))})", env=ENV).returncode == 0
