"""Command line of the data plane. Each command loads only what it needs.

python -m fettle_trainer train SPEC.json      train; events go to <output_dir>/events.jsonl
python -m fettle_trainer wait [--base B]      be ready for a run, which comes on descriptor 3
python -m fettle_trainer merge --base B --adapter A --out O
python -m fettle_trainer checkpoint --run R --step N --base B [--adapter A] --out O
python -m fettle_trainer export --source S --base B --format F --out O   (--help lists the rest)
python -m fettle_trainer tune suggest         where a sweep looks next: asked on stdin, told on stdout
python -m fettle_trainer tune importance      which hyperparameters mattered
python -m fettle_trainer probe                what this machine can do, as JSON
python -m fettle_trainer schema               JSON Schema of a spec
"""

import argparse
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from .light_start import (
    bound_product_caches,
    collect_from_here,
    hide_unused_packages,
    prepare_transformers,
    put_off_collection,
)
from .light_torch import import_torch


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    if arguments is None and given[:1] != ["fetch"]:
        hide_unused_packages()
        if given[:1] in (["train"], ["wait"], ["serve"]):
            put_off_collection()
        # These two learn from their spec how many products to keep.
        if given[:1] not in (["train"], ["wait"]):
            bound_product_caches()
    # These two have command lines of their own.
    if given[:1] == ["serve"]:
        prepare_transformers()
        from .serve import main as serve

        collect_from_here()
        return serve(given[1:])
    if given[:1] == ["fetch"]:
        from .fetch import main as fetch

        return fetch(given[1:])
    options = _parser().parse_args(given)
    if options.command == "train":
        from .run import train_command

        return train_command(options.spec)
    if options.command == "wait":
        import_torch()
        from .wait import wait_command

        return wait_command(options.base)
    if options.command == "tune":
        from .tune import tune_command

        return tune_command(options.what)
    if options.command == "schema":
        from .spec import json_schema

        print(json.dumps(json_schema(), indent=2))
        return 0
    if options.command == "probe":
        from .probe import four_bits, probe

        print(json.dumps(four_bits() if options.four_bits else probe()))
        return 0
    return _model_command(options)


def _model_command(options: argparse.Namespace) -> int:
    """The last line of stdout is the answer: {max_abs_diff}, {written}, or {failed: {code, message}}."""
    from .failure import TrainFailure, is_disk_full, is_out_of_memory

    if options.end_with_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        answer = _answer(options)
    except TrainFailure as error:
        return _fail(error.code, f"{error} {error.hint}")
    except Exception as error:
        if is_disk_full(error):
            return _fail("disk_full", f"The disk is full: {error}. Free space, then try again.")
        if is_out_of_memory(error):
            return _fail("out_of_memory", f"The model does not fit into memory: {error}.")
        raise
    print(json.dumps(answer))
    return 0


def _answer(options: argparse.Namespace) -> dict[str, object]:
    if options.command in ("export", "verify-export"):
        return _export_answer(options)
    from .artefact import merge, verify

    if options.command == "merge":
        return {"max_abs_diff": merge(options.base, options.adapter, options.out)}
    if options.command == "verify":
        return {"max_abs_diff": verify(options.artefact, options.base, options.probe)}
    from .checkpoint_model import Start, export_checkpoint
    from .spec import read_spec

    start = Start(options.base, options.adapter)
    spec = read_spec(options.run / "spec.json")
    export_checkpoint(spec, options.run, options.step, start=start, out=options.out)
    return {"written": str(options.out)}


def _export_answer(options: argparse.Namespace) -> dict[str, object]:
    from dataclasses import asdict

    if options.command == "verify-export":
        from .exports.compare import measure

        return asdict(measure(options.format, options.folder, base=options.base, probe=options.probe))
    from .exports.write import Request, export_model

    request = Request(
        source=options.source,
        base=options.base,
        run=options.run,
        name=options.name or options.source.name,
        form=options.format,
        quantize=options.quantize,
        prune=options.prune,
        out=options.out,
    )
    return {"report": export_model(request, lambda doing: print(json.dumps({"doing": doing}), flush=True))}


def _fail(code: str, message: str) -> int:
    print(f"{code}: {message}", file=sys.stderr)
    print(json.dumps({"failed": {"code": code, "message": message}}))
    return 1


def _end_with_stdin() -> None:
    """A server that dies closes our stdin: nobody waits for the result then."""
    # Not sys.stdin: a thread that waits in it aborts the interpreter's orderly end.
    while os.read(0, 4096):
        pass
    os._exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fettle_trainer", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train what a spec says")
    train.add_argument("spec", type=Path)
    wait = commands.add_parser("wait", help="be ready for a run, which comes on descriptor 3")
    wait.add_argument("--base", type=Path, help="folder of the model it is likely to begin from")
    merge = commands.add_parser("merge", help="fold an adapter into its base model")
    merge.add_argument("--base", type=Path, required=True)
    merge.add_argument("--adapter", type=Path, required=True)
    merge.add_argument("--out", type=Path, required=True)
    verify = commands.add_parser("verify", help="load an artefact and compare its answers with a probe")
    verify.add_argument("--artefact", type=Path, required=True)
    verify.add_argument("--base", type=Path, required=True)
    verify.add_argument("--probe", type=Path, required=True)
    checkpoint = commands.add_parser("checkpoint", help="write a run's checkpoint as a model or adapter")
    checkpoint.add_argument("--run", type=Path, required=True)
    checkpoint.add_argument("--step", type=int, required=True)
    checkpoint.add_argument("--base", type=Path, required=True)
    checkpoint.add_argument("--adapter", type=Path)
    checkpoint.add_argument("--out", type=Path, required=True)
    for command in (merge, verify, checkpoint, *_export_parsers(commands)):
        command.add_argument("--json", action="store_true", help="the only format; accepted for scripts")
        command.add_argument("--end-with-stdin", action="store_true", help="give up when stdin is closed")
    tune = commands.add_parser("tune", help="where a sweep looks next, and what mattered in it")
    tune.add_argument("what", choices=("suggest", "importance"))
    probe = commands.add_parser("probe", help="what this machine can do, as JSON")
    probe.add_argument("--four-bits", action="store_true", help="only whether the method qlora works here")
    commands.add_parser("schema", help="JSON Schema of a spec")
    commands.add_parser("serve", help="answer from a model over stdin and stdout")
    commands.add_parser("fetch", help="make base models ready")
    return parser


def _export_parsers(commands: Any) -> list[argparse.ArgumentParser]:
    forms = ("safetensors", "merged", "gguf", "onnx")
    export = commands.add_parser("export", help="write a tuned model for use elsewhere, and compare it")
    export.add_argument("--source", type=Path, required=True, help="the tuned model's folder")
    export.add_argument("--base", type=Path, required=True, help="its base; of a whole model the same folder")
    export.add_argument("--run", type=Path, help="its run's folder, for the rows that were held out")
    export.add_argument("--name", help="what the model is called")
    export.add_argument("--format", choices=forms, required=True)
    export.add_argument("--quantize", choices=("f16", "q8_0", "q4_0", "int8"))
    export.add_argument("--prune", type=float, default=0.0, help="share of the weights, from 0 to below 1")
    export.add_argument("--out", type=Path, required=True)
    verify = commands.add_parser("verify-export", help="load an export and compare its answers with a probe")
    verify.add_argument("--format", choices=forms, required=True)
    for name in ("--folder", "--base", "--probe"):
        verify.add_argument(name, type=Path, required=True)
    return [export, verify]


if __name__ == "__main__":
    sys.exit(main())
