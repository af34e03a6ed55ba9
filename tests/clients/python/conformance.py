"""Drives a Fettle server with the official Python client, unmodified. Prints one JSON document with what it saw.

usage: conformance.py BASE_URL API_KEY   (the client's folder is on PYTHONPATH)
"""

import asyncio
import io
import json
import sys

import openai

BASE = "smollm2-135m-instruct"
ROWS = "\n".join(
    json.dumps({"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]})
    for i in range(12)
)


def refusal(call) -> list[object]:
    """Class name, status, code and param of the error the client raises."""
    try:
        call()
    except openai.APIStatusError as error:
        return [type(error).__name__, error.status_code, error.code, error.param]
    return ["no error"]


def files_and_uploads(client: openai.OpenAI) -> dict[str, object]:
    file = client.files.create(file=("train.jsonl", ROWS.encode()), purpose="fine-tune")
    ready = client.files.wait_for_processing(file.id, poll_interval=0.05)
    big = client.uploads.upload_file_chunked(
        file=b"x" * 2500, filename="big.jsonl", bytes=2500, mime_type="text/plain", purpose="evals", part_size=1000
    )
    kept = [item.id for item in client.files.list(limit=1)]
    return {
        "file": file.id,
        "status": ready.status,
        "same_bytes": client.files.content(file.id).read() == ROWS.encode(),
        "upload": [big.status, big.file.bytes if big.file else None],
        "listed": file.id in kept,
        "deleted": client.files.delete(big.file.id).deleted if big.file else None,
        "gone": refusal(lambda: client.files.retrieve(big.file.id)) if big.file else None,
    }


def jobs(client: openai.OpenAI, file: str) -> dict[str, object]:
    job = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=file,
        suffix="py",
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        extra_body={"trainingType": "globalstandard"},
    )
    events = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=1)]
    seen = client.fine_tuning.jobs.retrieve(job.id)
    # Pause and cancel send an empty body with a JSON content type.
    cancelled = client.fine_tuning.jobs.cancel(job.id)
    return {
        "status": job.status,
        "epochs": seen.hyperparameters.n_epochs if seen.hyperparameters else None,
        "events": events,
        "cancelled": cancelled.status,
        "again": refusal(lambda: client.fine_tuning.jobs.cancel(job.id)),
        "checkpoints": list(client.fine_tuning.jobs.checkpoints.list(job.id)),
        "listed": job.id in [item.id for item in client.fine_tuning.jobs.list(limit=1)],
        "unknown_model": refusal(lambda: client.fine_tuning.jobs.create(model="gpt-4o", training_file=file)),
    }


def inference(client: openai.OpenAI) -> dict[str, object]:
    messages = [{"role": "user", "content": "Hi"}]
    whole = client.chat.completions.create(model=BASE, messages=messages, logprobs=True, top_logprobs=1)
    stream = client.chat.completions.create(
        model=BASE, messages=messages, stream=True, stream_options={"include_usage": True}
    )
    text, total = "", 0
    for chunk in stream:
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        total = chunk.usage.total_tokens if chunk.usage else total
    return {
        "chat": whole.choices[0].message.content,
        "logprob": whole.choices[0].logprobs.content[0].logprob if whole.choices[0].logprobs else None,
        "request_id": (whole._request_id or "")[:4],
        "stream": [text, total],
        "completion": client.completions.create(model=BASE, prompt="Once").choices[0].text,
        "embedding": client.embeddings.create(model="minilm", input=["a", "b"]).data[1].embedding[:3],
        "models": [model.id for model in client.models.list()],
        "slash": client.models.retrieve("org/tiny-t5").id,
        "wrong_key": refusal(lambda: client.with_options(api_key="fettle_no").models.list()),
    }


async def in_parallel(base_url: str, key: str) -> int:
    """Parts sent at once by the asynchronous client; the file that comes out is whole."""
    client = openai.AsyncOpenAI(base_url=base_url, api_key=key)
    upload = await client.uploads.create(filename="p.bin", purpose="evals", bytes=4000, mime_type="text/plain")
    parts = await asyncio.gather(
        *(client.uploads.parts.create(upload.id, data=io.BytesIO(bytes([65 + i]) * 1000)) for i in range(4))
    )
    done = await client.uploads.complete(upload.id, part_ids=[part.id for part in parts])
    assert done.file is not None
    content = (await client.files.content(done.file.id)).read()
    await client.close()
    return content == b"".join(bytes([65 + i]) * 1000 for i in range(4))


def main(base_url: str, key: str) -> None:
    client = openai.OpenAI(base_url=base_url, api_key=key)
    files = files_and_uploads(client)
    result = {
        "version": openai.__version__,
        "files": files,
        "jobs": jobs(client, str(files["file"])),
        "inference": inference(client),
        "parallel": asyncio.run(in_parallel(base_url, key)),
    }
    print(json.dumps(result))


main(*sys.argv[1:])
