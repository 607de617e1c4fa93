"""``sparewatt host challenge`` as an owner runs it."""

from click.testing import CliRunner

from sparewatt.commands.host_challenge import challenge_command


def test_challenge_of_the_processor_passes_and_says_what_was_shown():
    result = CliRunner().invoke(challenge_command, ["--cpu", "--memory", "0.03125"])
    assert result.exit_code == 0, result.output
    assert "memory filled and shown  0.03 GiB of 0.03 GiB" in result.output
    assert "✓ speeds not compared: no figures" in result.output


def test_challenge_of_more_than_is_free_says_what_to_do():
    result = CliRunner().invoke(challenge_command, ["--cpu", "--memory", "1024"])
    assert result.exit_code == 1
    assert "stop what uses them, or claim less" in result.output
