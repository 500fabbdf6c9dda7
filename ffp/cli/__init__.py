"""The command line: explicit files in, explicit files out. Exit 0 done, 2 user or config error, 3 bad artifact."""

from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import Sequence

import typer

from ffp.cli import front as front  # first, since the help lists the commands in this order
from ffp.cli import grid as grid
from ffp.cli.app import app
from ffp.core.errors import FfpError, is_out_of_memory
from ffp.core.plain import one_line, printable
from ffp.core.suggest import did_you_mean

INTERRUPTED = 130  # typer answers Ctrl-C with this code


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: The words after `ffp`; those of this process if None.

    Returns:
        The exit code: 0, what the command returns, or that of its error, whose one line goes to stderr.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path may have letters that the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands = ((command.name, command.callback) for command in app.registered_commands)
    known = {own or function.__name__.replace("_", "-") for own, function in commands if function}  # as typer has it
    name = f"ffp {words[0]}" if words and words[0] in known else "ffp"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for chatty in ("httpx", "httpx2", "fontTools"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    code = FfpError.exit_code
    try:
        code = int(app(words, standalone_mode=False, prog_name="ffp") or 0)
        message = "interrupted; start it again to go on." if code == INTERRUPTED else ""
    except typer.TyperException as error:
        message = f"{_usage_fault(error)} See {name} --help."
    except FfpError as error:
        code, message = error.exit_code, str(error)
    except Exception as error:
        if is_out_of_memory(error):
            message = "out of memory. Lower batch_tokens, or give more (mem_mb of a grid's model)."
        elif isinstance(error, OSError):
            what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            message = f"{what}. Check the path, its rights and the space on its disk."
        else:
            raise
    if message:
        print(f"{name}: {one_line(message)}", file=sys.stderr)
    return code


class _Printable(logging.Formatter):
    """Log lines in which names from outside move no cursor."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _usage_fault(error: typer.TyperException) -> str:
    """What is wrong with the command line, as one sentence."""
    message = error.format_message().replace("Value error, ", "").rstrip(".")
    message = message[:1].lower() + message[1:]
    unknown, context = re.match(r"no such option: (\S+)", message), getattr(error, "ctx", None)
    if unknown and context:
        options = [option for parameter in context.command.params for option in parameter.opts]
        return f"no such option {unknown[1]}: {did_you_mean(unknown[1], options)}"
    return message if message.endswith("?") else f"{message}."
