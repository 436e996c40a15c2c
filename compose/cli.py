"""The command `millstream`: its flags, its exit code, and what it prints. The verbs are in compose/verbs.py.

    0 done    1 found a fault    2 called wrongly, or something it needs is not there

With --json the last line is one JSON object; without, it is a sentence for a person. Settings are flags of every verb
(compose/settings.py).
"""

import argparse
import json
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from compose import settings as settings_module
from compose.settings import Settings
from compose.verbs import VERBS, Arguments, Result
from schemas.errors import MillstreamError


def main(argv: Sequence[str]) -> int:
    """Run one verb. Returns the exit code."""
    return run(parser().parse_args(argv))


def run(arguments: Arguments) -> int:
    """Run the verb that these name. Returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("faust").setLevel(logging.WARNING)
    logging.getLogger("mode").setLevel(logging.WARNING)
    # SIGTERM ends a verb as Ctrl-C does, so that what it started is stopped; workers have handlers of their own.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        chosen = settings_module.load(vars(arguments))
        result = VERBS[arguments.verb].run(chosen, arguments)
    except MillstreamError as error:
        print(json.dumps({"error": str(error)}) if arguments.json else f"millstream: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("millstream: stopped.", file=sys.stderr)
        return 2
    exit_code = int(result.pop("exit_code", 0))
    print(json.dumps(result) if arguments.json else sentence(result))
    return exit_code


def parser() -> argparse.ArgumentParser:
    """Every verb with its flags."""
    root = argparse.ArgumentParser(prog="millstream", description="Events to features to ranked responses, on Kafka and Redis.")
    verbs = root.add_subparsers(dest="verb", required=True, metavar="VERB")
    families: dict[str, Any] = {}
    for name, verb in VERBS.items():
        family, _, action = name.rpartition(" ")
        if family and family not in families:
            families[family] = _family(verbs, family)
        one = families.get(family, verbs).add_parser(action, help=verb.help, description=verb.help)
        one.set_defaults(verb=name)
        for argument, keywords in verb.arguments:
            one.add_argument(argument, **keywords)
        one.add_argument("--json", action="store_true", help="print one JSON object last")
        group = one.add_argument_group("settings")
        for setting in fields(Settings):
            flag = f"--{setting.name.replace('_', '-')}"
            group.add_argument(flag, metavar="VALUE", help=f"{setting.metadata['help']} (default: {setting.metadata['default'] or 'none'})")
    return root


def _family(verbs: Any, name: str) -> Any:  # noqa: ANN401  # argparse names the type in private
    """What the actions of a verb are added to, whose names are of two words: `replay cutover`."""
    help_ = f"{name} ACTION: see `{name} --help`"
    return verbs.add_parser(name, help=help_, description=help_).add_subparsers(required=True, metavar="ACTION")


def sentence(result: Result) -> str:
    """A result for a person: a line for each of its parts."""
    words = {name: json.dumps(value) if isinstance(value, dict | list) else value for name, value in result.items()}
    return "\n".join(f"{name.replace('_', ' ')}: {word}" for name, word in words.items())
