"""A local server for what a lesson has trained: ``python -m common serve TASK --model FOLDER``.

Four tasks: names in a text, the class of a text, pairs of sentences, chat in OpenAI's protocol. It listens on 127.0.0.1
only and answers no other host name, so that no page in a browser can reach it either. Requests that arrive within a few
milliseconds are computed together: a model costs little more for eight texts than for one. Give strangers a real server.

What is unusual: annotations are evaluated here (no ``from __future__ import annotations``), because FastAPI reads them.
"""

import asyncio
import json
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Lock, Thread
from typing import Annotated, Any, Literal

from common.errors import RoadmapError, unknown
from common.hardware import device
from common.models import checkpoint
from common.text import chat_prompt, check_conversation

import torch

HOST = "127.0.0.1"
BATCH, WAIT = 32, 0.01  # items computed together at most; seconds that the first of them waits for others
OVERLAP = 32  # tokens that neighbouring windows of a long text share
_DEFAULTS = {"ner": "bert-ner", "classify": "bert-sentiment", "pairs": "bert", "chat": "chat"}
TASKS = tuple(_DEFAULTS)


def serve(task: str, model: str | Path | None = None, *, port: int = 8000) -> None:
    """Load a model and answer requests until interrupted; arguments as of :func:`build` and :func:`run`."""
    run(build(task, model), port, task)


def run(app: Any, port: int, what: str) -> None:
    """Answer requests on this machine until interrupted; the address is printed once it can be called.

    Args:
        app: From :func:`build` or :func:`local`.
        port: 0 takes any free one.
        what: What is served, for the printed line.

    Raises:
        RoadmapError: If the port cannot be used.
    """
    import uvicorn

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen()
        except (OSError, OverflowError) as error:
            raise RoadmapError(f"Port {port} cannot be used ({error}); choose another with --port.") from error
        print(f"http://{HOST}:{listener.getsockname()[1]}  {what} (the calls: /docs, to stop: Ctrl-C)", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def local(title: str, lifespan: Any = None) -> Any:
    """An application (FastAPI) that answers this machine's own names only, and says in one sentence what is wrong.

    Raises:
        RoadmapError: If fastapi is not installed.
    """
    try:
        import uvicorn  # noqa: F401
        from fastapi import FastAPI, HTTPException, Request
        from fastapi.exceptions import RequestValidationError
        from fastapi.responses import JSONResponse
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ImportError as error:
        raise RoadmapError("The server needs fastapi and uvicorn; install them with: pip install fastapi uvicorn") from error

    app = FastAPI(title=title, lifespan=lifespan)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:])) or "the body"
        return JSONResponse({"error": f"{where}: {first['msg']}"}, status_code=422)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, status_code=error.status_code)

    return app


class Batcher:
    """Collects what arrives at about the same time and computes it in one call, in a thread beside the event loop.

    Attributes:
        compute: The results of some items and their key; set before the first request.
        batches: Calls made so far.
        items: Items in them.
    """

    compute: Callable[[list[Any], Any], Sequence[Any]]

    def __init__(self, size: int = BATCH, wait: float = WAIT) -> None:
        self.size, self.wait = size, wait
        self.batches = self.items = 0
        self._queue: asyncio.Queue[tuple[Any, Hashable, asyncio.Future[Any]]] = asyncio.Queue()

    async def all(self, items: Sequence[Any], key: Hashable = None) -> list[Any]:
        """The results of some items; only items of the same ``key`` are computed together."""
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in items]
        for item, future in zip(items, futures):
            self._queue.put_nowait((item, key, future))
        return list(await asyncio.gather(*futures))

    async def run(self) -> None:
        """Serve the queue, for as long as the server lives."""
        while True:
            waiting = [await self._queue.get()]
            await asyncio.sleep(self.wait)
            while not self._queue.empty() and len(waiting) < self.size:
                waiting.append(self._queue.get_nowait())
            for key in dict.fromkeys(key for _, key, _ in waiting):
                group = [(item, future) for item, other, future in waiting if other == key]
                self.batches, self.items = self.batches + 1, self.items + len(group)
                try:
                    results = await asyncio.to_thread(self.compute, [item for item, _ in group], key)
                except Exception as error:
                    for _, future in group:
                        if not future.done():
                            future.set_exception(error)
                    continue
                for (_, future), result in zip(group, results):
                    if not future.done():  # else the client has gone
                        future.set_result(result)


def build(task: str, model: str | Path | None = None) -> Any:
    """The application (FastAPI), with its model loaded.

    Args:
        task: One of :data:`TASKS`.
        model: A folder or Hub name; None is a checkpoint of the course. For ``pairs``, a model for sequence classification
            reads both texts at once, and the score is the probability of the last class. Any other encoder reads each text
            alone, and the score is the cosine of the means over tokens.

    Raises:
        RoadmapError: As :func:`serve`.
    """
    if task not in _DEFAULTS:
        raise unknown("task", task, TASKS)
    batcher = Batcher()

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        worker = asyncio.create_task(batcher.run())
        yield
        worker.cancel()

    app = local(f"LLM RoadMap: {task}", lifespan)
    source = str(model or checkpoint(_DEFAULTS[task]))
    batcher.compute = _load(task, source)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"task": task, "model": Path(source).name, "batches": batcher.batches, "items": batcher.items}

    (_add_chat if task == "chat" else _add_items)(app, batcher, task, source)
    return app


def _text_type() -> Any:
    """Text of a request: not empty, and not a book."""
    from pydantic import StringConstraints

    return Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=20_000)]


def _add_items(app: Any, batcher: Batcher, task: str, source: str) -> None:
    """The address for texts (``/ner``, ``/classify``) or pairs of them (``/pairs``)."""
    from pydantic import BaseModel, Field

    text_type = _text_type()
    if task == "pairs":

        class Pairs(BaseModel, extra="forbid"):
            pairs: list[tuple[text_type, text_type]] = Field(min_length=1, max_length=256)  # type: ignore[valid-type]

        @app.post("/pairs")
        async def pairs(request: Pairs) -> dict[str, Any]:
            return {"scores": await batcher.all(request.pairs)}

    else:

        class Texts(BaseModel, extra="forbid"):
            texts: list[text_type] = Field(min_length=1, max_length=256)  # type: ignore[valid-type]

        @app.post(f"/{task}")
        async def texts(request: Texts) -> dict[str, Any]:
            return {"results": await batcher.all(request.texts)}


def _add_chat(app: Any, batcher: Batcher, task: str, source: str) -> None:
    """The address of OpenAI's protocol for conversations, with streaming."""
    from fastapi import HTTPException
    from fastapi.responses import StreamingResponse
    from pydantic import BaseModel, Field

    name, text_type = Path(source).name, _text_type()
    compute: Any = batcher.compute

    class Message(BaseModel, extra="forbid"):
        role: Literal["system", "user", "assistant"]
        content: text_type  # type: ignore[valid-type]

    class Chat(BaseModel, extra="forbid"):  # an option that would do nothing is refused
        messages: list[Message] = Field(min_length=1, max_length=200)
        max_tokens: int = Field(64, ge=1, le=1_024)
        temperature: float = Field(0.0, ge=0.0, le=0.0, description="0 only: the most likely answer")
        stream: bool = False
        model: str = name

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(request: Chat) -> dict[str, Any] | StreamingResponse:
        messages = [message.model_dump() for message in request.messages]
        if request.model not in (name, source):
            raise HTTPException(404, f"there is no model {request.model!r} here, only {name!r}")
        if messages[-1]["role"] != "user":
            raise HTTPException(422, "the last message must be the user's")
        try:
            check_conversation(messages)
        except RoadmapError as error:
            raise HTTPException(422, str(error)) from error
        try:
            messages = compute.recent(messages, request.max_tokens)
        except RoadmapError as error:
            raise HTTPException(413, str(error)) from error
        head = {"id": f"chat-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}
        if request.stream:
            events = _events(head, compute.stream(messages, request.max_tokens), compute.ended, request.max_tokens)
            return StreamingResponse(events, media_type="text/event-stream")
        (said,) = await batcher.all([messages], key=request.max_tokens)
        choice = {"index": 0, "message": {"role": "assistant", "content": said}}
        choice["finish_reason"] = compute.ended(said, request.max_tokens)
        return head | {"object": "chat.completion", "choices": [choice]}


# ------------------------------------------------------------------------------------------------ the models


def _load(task: str, source: str) -> Any:
    import transformers as tf

    home = device(verbose=False)
    kinds: dict[str, Any] = {
        "ner": tf.AutoModelForTokenClassification,
        "classify": tf.AutoModelForSequenceClassification,
        "chat": tf.AutoModelForCausalLM,
    }
    try:
        tokenizer = tf.AutoTokenizer.from_pretrained(source)
        if task == "pairs":
            one_tower = any(name.endswith("ForSequenceClassification") for name in _architectures(source))
            kinds["pairs"] = tf.AutoModelForSequenceClassification if one_tower else tf.AutoModel
        model = kinds[task].from_pretrained(source, dtype=torch.float32).eval().to(home)
    except (OSError, ValueError) as error:
        raise RoadmapError(f"No model for {task} could be loaded from {source}: {str(error).splitlines()[0]}") from error
    if task == "chat":
        return _Chat(model, tokenizer)
    if task == "pairs":
        return _OneTower(model, tokenizer) if one_tower else _TwoTowers(model, tokenizer)
    return _Texts(task, model, tokenizer)


def _architectures(source: str) -> list[str]:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(source).architectures or []


class _Texts:
    """Names or classes, by transformers' own pipelines; long texts are tagged in windows that overlap."""

    def __init__(self, task: str, model: Any, tokenizer: Any) -> None:
        from transformers import pipeline

        self.ner = task == "ner"
        if self.ner:
            options: dict[str, Any] = {"aggregation_strategy": "simple", "stride": OVERLAP}
            self.pipe: Any = pipeline("token-classification", model=model, tokenizer=tokenizer, **options)
        else:
            self.pipe = pipeline("text-classification", model=model, tokenizer=tokenizer)

    def __call__(self, texts: list[str], _: Any = None) -> list[Any]:
        if not self.ner:
            return [
                {"label": r["label"], "score": float(r["score"])} for r in self.pipe(texts, batch_size=BATCH, truncation=True)
            ]
        found = self.pipe(texts, batch_size=BATCH)
        return [
            [
                {"type": r["entity_group"], "text": text[r["start"] : r["end"]], "start": int(r["start"]), "end": int(r["end"])}
                | {"score": float(r["score"])}
                for r in rows
            ]
            for text, rows in zip(texts, found)
        ]


class _OneTower:
    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    @torch.inference_mode()
    def __call__(self, pairs: list[tuple[str, str]], _: Any = None) -> list[float]:
        left, right = zip(*pairs)
        inputs = self.tokenizer(list(left), list(right), padding=True, truncation=True, return_tensors="pt").to(self.model.device)
        logits = self.model(**inputs).logits
        return (logits.sigmoid()[:, 0] if logits.shape[1] == 1 else logits.softmax(-1)[:, -1]).tolist()


class _TwoTowers(_OneTower):
    @torch.inference_mode()
    def __call__(self, pairs: list[tuple[str, str]], _: Any = None) -> list[float]:
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))  # each text once
        inputs = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self.model.device)
        hidden, mask = self.model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
        vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
        place = {text: i for i, text in enumerate(texts)}
        return [float(vectors[place[a]] @ vectors[place[b]]) for a, b in pairs]


class _Chat:
    def __init__(self, model: Any, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise RoadmapError("This model has no chat template, so it cannot chat; give an instruct model.")
        self.model, self.tokenizer = model, tokenizer
        self.room = int(getattr(model.config, "max_position_embeddings", 1_024))
        self.lock = Lock()  # one generation at a time: a streaming one and a batch would only slow each other down

    def __call__(self, conversations: list[Any], max_tokens: int) -> list[str]:
        from common.chat import answer

        with self.lock:
            return answer(self.model, self.tokenizer, conversations, max_new_tokens=max_tokens, batch=BATCH)

    def recent(self, messages: list[dict[str, str]], max_tokens: int) -> list[dict[str, str]]:
        """The messages without the oldest turns that do not fit beside the answer; the system message stays."""
        system, rest = ([m for m in messages if (m["role"] == "system") == first] for first in (True, False))

        def too_long() -> bool:
            return len(chat_prompt(self.tokenizer, system + rest)[1]) + max_tokens > self.room

        while too_long() and len(rest) > 1:
            rest = rest[2:] if rest[1]["role"] == "assistant" and len(rest) > 2 else rest[1:]
        if too_long():
            raise RoadmapError(f"The last message and {max_tokens} new tokens do not fit into {self.room} tokens; shorten one.")
        return system + rest

    def ended(self, said: str, max_tokens: int) -> str:
        """Why an answer ends: ``"length"`` if it has as many tokens as it may, else ``"stop"``."""
        return "length" if len(self.tokenizer(said, add_special_tokens=False)["input_ids"]) >= max_tokens else "stop"

    def stream(self, messages: list[dict[str, str]], max_tokens: int) -> Any:
        """The answer in pieces, while it is being made."""
        from transformers import TextIteratorStreamer

        ids = torch.tensor([chat_prompt(self.tokenizer, messages)[1]], device=self.model.device)
        pieces = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)  # type: ignore[no-untyped-call]
        options = {"max_new_tokens": max_tokens, "do_sample": False, "pad_token_id": self.tokenizer.pad_token_id}

        def work() -> None:
            with self.lock:
                try:
                    self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options, streamer=pieces)
                finally:
                    pieces.end()  # or the reader would wait for ever

        Thread(target=work, daemon=True).start()
        return pieces


def _events(head: dict[str, Any], pieces: Any, ended: Callable[[str, int], str], max_tokens: int) -> Any:
    """Server-sent events as OpenAI's clients read them."""

    def event(delta: dict[str, str], reason: str | None) -> str:
        body = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        return f"data: {json.dumps(head | body, ensure_ascii=False)}\n\n"

    said = ""
    for piece in filter(None, pieces):
        said += piece
        yield event({"content": piece}, None)
    yield event({}, ended(said, max_tokens))
    yield "data: [DONE]\n\n"
