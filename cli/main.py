"""cdnctl's entry point: names its commands, and imports one only when it is called.

``cdnctl --help`` is asked often and by completion, so this module imports click
and nothing that click does not import already; a test holds it to that.
"""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from cli.exits import Exit

COMMANDS = {
    "up": "Start the fleet and wait until it is ready.",
    "down": "Stop every service, then supervisord.",
    "status": "Show what runs, and how it is.",
    "describe": "Show everything that is known of services.",
    "why": "Tell what happened to a service, and what to do.",
    "top": "Watch the fleet live; sort, filter, restart.",
    "start": "Start services and wait until they are ready.",
    "stop": "Stop services; what is in flight is finished first.",
    "restart": "Stop services if they run, then start them.",
    "reload": "Have services read their configuration again.",
    "signal": "Send services a signal.",
    "scale": "Run so many instances of a service.",
    "enable": "Let services be started again.",
    "disable": "Stop services, and keep them down.",
    "reset-failed": "Forget the failures of services.",
    "maintenance": "Have services not judged while you work on them.",
    "shed": "Tell services to serve less, until cdnctl resume.",
    "resume": "Have services serve as before cdnctl shed.",
    "limits": "Show what services use of what they may; change it.",
    "ooda": "Show what control loops do; switch their mode.",
    "logs": "Show the end of services' logs, and follow them.",
    "events": "Show what happened, and watch what happens.",
    "history": "Show what became of services, and draw their metrics.",
    "wait": "Wait until services are ready, healthy or stopped.",
    "is-active": "Say whether services run.",
    "is-failed": "Say whether services have failed.",
    "doctor": "Check the whole set-up, and say how to mend it.",
    "demo": "Play a small real story through all services.",
    "init": "Write a configuration to begin with.",
    "completion": "Print what makes a shell complete cdnctl's words.",
    "version": "Show the version.",
}
"""In the order of ``cdnctl --help``; the help text of each begins with this line."""

ALIASES = {"ls": "status", "show": "describe", "kill": "signal"}
"""What operators have in their fingers from elsewhere."""

_TOGETHER = {
    "reload": "signals",
    "signal": "signals",
    "enable": "standing",
    "disable": "standing",
    "reset-failed": "standing",
    "maintenance": "standing",
    "shed": "load",
    "resume": "load",
    "wait": "questions",
    "is-active": "questions",
    "is-failed": "questions",
    "completion": "shell",
    "version": "shell",
}
"""Commands that share a module of cli.commands; there each is ``NAME_command``. The others are ``command`` in NAME."""

EPILOG = """\b
Examples:
  cdnctl up                        start the fleet of ./supervisord.conf
  cdnctl status '*fabric'          some of it; names may be globs
  cdnctl restart cdn-data-fabric   drain it, and wait until the next one is ready
  cdnctl why gateway-primary       what happened to it, and what to do
  cdnctl logs -f gateway-primary   follow its log
  cdnctl ls, show, kill            the same as status, describe, signal

\b
Exit codes:
  0  all selected are running and healthy, or the action is done
  1  the action failed, even partly     3  something is not running or not healthy
  2  usage                              4  unknown service, or state unobtainable
  124  timed out                        130  interrupted
  141  whoever read the output has gone
"""


class LazyGroup(click.Group):
    """Knows every command's name and first line, and imports only the one that runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which an operator meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import it, if there is one."""
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        word = name.replace("-", "_")
        module = __import__(f"cli.commands.{_TOGETHER.get(name, word)}", fromlist=["command"])
        command: click.Command = getattr(module, f"{word}_command" if name in _TOGETHER else "command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click; ``help COMMAND`` is ``COMMAND --help``, and words from elsewhere are answered with ours."""
        if ctx.resilient_parsing:  # a shell completes
            return super().resolve_command(ctx, args)
        word, *rest = args
        if word == "help" and rest:
            return super().resolve_command(ctx, [rest[0], "--help"])
        if word == "help":
            click.echo(ctx.get_help())
            ctx.exit()
        if not word.startswith("-") and self.get_command(ctx, word) is None:
            from cli.foreign import advice

            hint = advice(word, [*COMMANDS, *ALIASES])
            ctx.fail(f"No such command '{word}'" + (f"; {hint}" if hint else "."))
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Commands by the table above, so that none of them is imported; options as click has them."""
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name, help=line) for name, line in COMMANDS.items() if name.startswith(incomplete)]
        found += [
            CompletionItem(alias, help=COMMANDS[name])
            for alias, name in ALIASES.items()
            if alias.startswith(incomplete)
        ]
        return found if not incomplete.startswith("-") else click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> object:
        """Run it. click would make the same 1 of a reader that has gone as of a failure."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            _forget_stdout()
            raise click.exceptions.Exit(Exit.READER_GONE) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table above, so that help imports no command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import version

    click.echo(f"cdnctl {version('cdn-daemon')}")
    ctx.exit()


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--run-dir",
    metavar="DIR",
    help="Where the fleet's sockets are. Default: $CDN_RUN_DIR; else run/ beside $CDN_CONFIG or ./supervisord.conf; "
    "else $XDG_RUNTIME_DIR/cdn, /run/cdn as root, ./run.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
@click.pass_context
def cdnctl(ctx: click.Context, run_dir: str | None) -> None:
    """Start, watch and stop a fleet of services under supervisord."""
    ctx.obj = run_dir


def _width() -> int:
    """Columns for help. click would ask shutil, which imports every archiver there is."""
    try:
        columns = os.get_terminal_size(1).columns
    except OSError:
        columns = 0
    return max(min(columns or 80, 80) - 2, 50)


def _forget_stdout() -> None:
    """What could not be written is not tried again at the end, which would be told in many lines."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run cdnctl; return its exit code."""
    gc.set_threshold(100_000)  # modules are most of what there is: looking through them takes longer than a status
    try:
        return _run(arguments)
    finally:
        gc.freeze()  # or the interpreter looks through all of it once more at its end, for 10 ms


def _run(arguments: Sequence[str] | None) -> int:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as some schedulers have it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # for as long as the process lives
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a service's words may not fit the terminal's encoding
    try:
        # standalone_mode would turn an interrupt into 1
        code = cdnctl.main(args=arguments, prog_name="cdnctl", standalone_mode=False, terminal_width=_width())
    except click.ClickException as error:
        error.show()
        if isinstance(error.__cause__, OSError):
            _forget_stdout()
        return error.exit_code
    except OSError as error:  # of something that nobody foresaw: a full disk, no rights, no more files
        _forget_stdout()
        click.echo(f"cdnctl: cannot go on: {error}", err=True)
        return Exit.FAILED
    except (click.Abort, KeyboardInterrupt):
        click.echo("cdnctl: interrupted", err=True)
        return Exit.INTERRUPTED
    return code if isinstance(code, int) else Exit.OK


if __name__ == "__main__":
    sys.exit(main())
