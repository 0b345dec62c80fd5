"""The lab's command line: what `enter` hands to a host's shell."""

import shlex

import pytest

from semantik_lab.cli import shell_line


def test_one_word_is_a_line_for_the_shell():
    assert shell_line(["df -h | head -3"]) == "df -h | head -3"


@pytest.mark.parametrize(
    "words",
    [
        ["semantik", "search", "debian", "How do I set a password?"],
        ["sh", "-c", "echo $HOME; echo 'a  b'"],
        ["printf", "%s", ""],
    ],
)
def test_several_words_arrive_as_they_were_given(words):
    assert shlex.split(shell_line(words)) == words
