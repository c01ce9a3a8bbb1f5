"""cdnctl completion and version."""

from __future__ import annotations

import platform

import click
from click.shell_completion import get_completion_class

from cli.answers import document, json_line
from cli.context import output_options, write
from cli.exits import Exit
from cli.rendering import Format, Output

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> int:
    """Print what makes a shell complete cdnctl's words.

    Commands, options and the names of services, which are those of the fleet that cdnctl would speak to there.

    Exit code: 0 printed.

    \b
    Examples:
      source <(cdnctl completion bash)      in ~/.bashrc; bash 4.4 or later
      source <(cdnctl completion zsh)       in ~/.zshrc, after compinit
      cdnctl completion fish > ~/.config/fish/completions/cdnctl.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    completion = found(ctx.find_root().command, {}, "cdnctl", "_CDNCTL_COMPLETE")
    # not .source(): it would run bash here to find out its version
    write((completion.source_template % completion.source_vars()).strip())
    return Exit.OK


@click.command("version")
@output_options(formats=(Format.TABLE, Format.JSON, Format.JSONL, Format.NAME))
@click.pass_context
def version_command(ctx: click.Context, output: Output) -> int:
    """Show the version.

    Of cdnctl, and of what it stands on.

    Exit code: 0 shown.

    \b
    Examples:
      cdnctl version
      cdnctl version -o json
    """
    from importlib.metadata import version

    versions = {"cdnctl": version("cdn-daemon"), "supervisor": version("supervisor"), "pyzmq": version("pyzmq")}
    versions |= {"msgspec": version("msgspec"), "python": platform.python_version()}
    match output.format:
        case Format.JSON:
            write(document({"versions": versions}))
        case Format.JSONL:
            write(json_line(versions))
        case Format.NAME:
            write(versions["cdnctl"])
        case _:
            write([f"{name} {number}" for name, number in versions.items()])
    return Exit.OK
