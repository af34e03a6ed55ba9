"""Command line of the data plane. Each command loads only what it needs.

python -m fettle_trainer train SPEC.json      train; events go to <output_dir>/events.jsonl
python -m fettle_trainer merge --base B --adapter A --out O
python -m fettle_trainer probe                what this machine can do, as JSON
python -m fettle_trainer schema               JSON Schema of a spec
"""

import argparse
import json
import sys
from pathlib import Path

from .light_start import hide_unused_packages


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    if arguments is None and given[:1] != ["fetch"]:
        hide_unused_packages()
    # These two have command lines of their own.
    if given[:1] == ["serve"]:
        from .serve import main as serve

        return serve(given[1:])
    if given[:1] == ["fetch"]:
        from .fetch import main as fetch

        return fetch(given[1:])
    options = _parser().parse_args(given)
    if options.command == "train":
        from .run import train_command

        return train_command(options.spec)
    if options.command == "schema":
        from .spec import json_schema

        print(json.dumps(json_schema(), indent=2))
        return 0
    if options.command == "probe":
        from .probe import probe

        print(json.dumps(probe()))
        return 0
    return _model_command(options)


def _model_command(options: argparse.Namespace) -> int:
    from .artefact import merge, verify
    from .failure import TrainFailure

    try:
        if options.command == "merge":
            difference = merge(options.base, options.adapter, options.out)
        else:
            difference = verify(options.artefact, options.base, options.probe)
    except TrainFailure as error:
        print(f"{error.code}: {error} {error.hint}", file=sys.stderr)
        return 1
    print(json.dumps({"max_abs_diff": difference}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fettle_trainer", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train what a spec says")
    train.add_argument("spec", type=Path)
    merge = commands.add_parser("merge", help="fold an adapter into its base model")
    merge.add_argument("--base", type=Path, required=True)
    merge.add_argument("--adapter", type=Path, required=True)
    merge.add_argument("--out", type=Path, required=True)
    verify = commands.add_parser("verify", help="load an artefact and compare its answers with a probe")
    verify.add_argument("--artefact", type=Path, required=True)
    verify.add_argument("--base", type=Path, required=True)
    verify.add_argument("--probe", type=Path, required=True)
    for command in (merge, verify):
        command.add_argument("--json", action="store_true", help="the only format; accepted for scripts")
    commands.add_parser("probe", help="what this machine can do, as JSON")
    commands.add_parser("schema", help="JSON Schema of a spec")
    commands.add_parser("serve", help="answer from a model over stdin and stdout")
    commands.add_parser("fetch", help="make base models ready")
    return parser


if __name__ == "__main__":
    sys.exit(main())
