"""``bench.py [--json FILE] [--dry] [--only WORK,WORK] [--minutes 9]``: our trainer on the GPU beside TRL's.

The sides take turns, each in a process of its own, with the same weights and rows.

Needs torch, transformers and peft beside the repository, and trl, datasets and liger-kernel for the peers; a
peer that is not there is left out and named. QLoRA needs bitsandbytes, and is measured without a peer. Prints
as it goes; what fails is told and the rest goes on.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from works import DRY, WARM, WORKS, Work

HERE = Path(__file__).parent
SIDES = ("ours", "trl-defaults", "trl-best")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU: does it run at all?")
    parser.add_argument("--only", default="", help="works, with commas between them")
    parser.add_argument("--minutes", type=float, default=9)
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    device = "cpu" if options.dry else "cuda"
    report: dict[str, Any] = {
        "machine": machine(device),
        "check": worker("check.py", [device], 150),
        "rows": [],
    }
    print(json.dumps(report["machine"]), json.dumps(report["check"], indent=1), sep="\n", flush=True)
    known, wanted = DRY if options.dry else WORKS, options.only.split(",")
    works = {name: work for name, work in known.items() if wanted == [""] or name in wanted}
    found = {name: {side: list[dict[str, Any]]() for side in SIDES} for name in works}
    report["runs"] = []
    for pair in range(max(work.pairs for work in works.values())):
        for name, side in [
            (name, side) for name, work in works.items() if pair < work.pairs for side in sides_of(work)
        ]:
            left = end - time.monotonic()
            if left < 25:
                print(f"{name}, pair {pair + 1}, {side}: left out, as the time is over", flush=True)
                continue
            dry = ["--dry"] if options.dry else []
            one = worker("side.py", [side, name, device, str(time.time()), *dry], min(left, 120))
            told = (
                one.get("failed") or f"{one['tokens_per_s']:.0f} tokens/s, {one['peak_bytes'] / 1e9:.1f} GB"
            )
            print(f"{name}, pair {pair + 1}, {side}: {told}", flush=True)
            if "failed" not in one:
                found[name][side].append(one)
            report["runs"].append({"work": name, "side": side, **one})
            save(options.json, report)
    for name, sides in found.items():
        report["rows"] += compared(name, sides)
    save(options.json, report)
    for row in report["rows"]:
        print(
            f"{row['work']} against {row['peer']}: {row['ratio']:.2f}x, {row['tokens_per_s']:.0f} and "
            f"{row['peer_tokens_per_s']:.0f} tokens/s, memory {row['memory_ratio']:.2f}x, first step "
            f"{row['first_step_s']:.1f} and {row['peer_first_step_s']:.1f} s, loss {row['loss_rel_diff']:.4f}"
        )


def sides_of(work: Work) -> tuple[str, ...]:
    """Peers are for what both do by default; these are compared with ours."""
    return SIDES[:1] if work.method == "qlora" or work.keeps != "everything" else SIDES


def machine(device: str) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"torch": torch.__version__, "python": sys.version.split()[0]}
    for name in ("transformers", "peft", "trl", "datasets", "liger-kernel", "bitsandbytes", "tokenizers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
        square = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
        for _ in range(3):
            square @ square
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            square @ square
        torch.cuda.synchronize()
        found["bf16_tflops"] = 10 * 2 * 8192**3 / (time.perf_counter() - start) / 1e12
    return found


def worker(script: str, arguments: list[str], seconds: float) -> dict[str, Any]:
    """Its last line, or {failed}."""
    command = [sys.executable, str(HERE / script), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"took longer than {seconds:.0f} s"}
    lines = done.stdout.strip().splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        print(done.stderr[-2500:], flush=True)
        return {"failed": f"exit code {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}"}


def compared(name: str, found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    def middle(side: str, key: str) -> float:
        return statistics.median(one[key] for one in found[side])

    rows: list[dict[str, Any]] = []
    for peer in SIDES[1:]:
        pairs = list(zip(found["ours"], found[peer], strict=False))
        if not pairs:
            continue
        ratios = [mine["tokens_per_s"] / other["tokens_per_s"] for mine, other in pairs]
        losses = [statistics.mean(found[side][0]["losses"][WARM:]) for side in ("ours", peer)]
        rows.append(
            {
                "work": name,
                "peer": peer,
                "pairs": len(pairs),
                "ratio": statistics.median(ratios),
                "ratios": ratios,
                "tokens_per_s": middle("ours", "tokens_per_s"),
                "peer_tokens_per_s": middle(peer, "tokens_per_s"),
                "memory_ratio": middle("ours", "peak_bytes") / max(1.0, middle(peer, "peak_bytes")),
                "first_step_s": middle("ours", "first_step_s"),
                "peer_first_step_s": middle(peer, "first_step_s"),
                "loss_rel_diff": abs(losses[0] - losses[1]) / losses[1],
            }
        )
    return rows


def save(path: Path | None, report: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
