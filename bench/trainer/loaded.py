"""Whether sentence-transformers makes of a folder that our trainer saved the vectors that we serve.

``loaded.py OUR_PYTHON ARTEFACT ROWS.jsonl`` runs in the bench's own environment and prints {"num_texts",
"max_abs_diff" of a component of two vectors of length 1, "least_cosine"}.
"""

import base64
import json
import subprocess
import sys
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer


def served(python: str, artefact: str, texts: list[str]) -> torch.Tensor:
    """N x E, from the process that the server asks."""
    command = [python, "-m", "fettle_trainer", "serve", "--base", artefact, "--family", "encoder"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        request = {"id": "texts", "op": "embed", "adapter": None, "inputs": texts}
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            message = json.loads(line)
            if message["type"] == "vectors":
                process.stdin.close()
                raw = [bytearray(base64.b64decode(one)) for one in message["vectors"]]
                return torch.stack([torch.frombuffer(one, dtype=torch.float32) for one in raw])
            if message["type"] in ("error", "fatal"):
                raise SystemExit(f"{artefact} is not served: {message['message']}")
    raise SystemExit(f"{artefact} is not served: exit code {process.returncode}")


def main() -> None:
    python, artefact, path = sys.argv[1:]
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    texts = [row[side] for row in rows for side in ("anchor", "positive")]
    ours = served(python, artefact, texts)
    theirs = SentenceTransformer(artefact, device="cpu").encode(texts, convert_to_tensor=True).cpu()
    cosines = (ours * theirs).sum(dim=-1) / theirs.norm(dim=-1)
    result = {"num_texts": len(texts), "max_abs_diff": float((ours - theirs).abs().max())}
    print(json.dumps({**result, "least_cosine": float(cosines.min())}))


if __name__ == "__main__":
    main()
