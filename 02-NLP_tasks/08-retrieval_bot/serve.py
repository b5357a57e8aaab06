"""The bot behind HTTP on this machine only: ``python serve.py``, then POST ``{"questions": ["..."]}`` to ``/answer``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from common import RoadmapError, outputs

try:
    from pydantic import BaseModel, Field
except ModuleNotFoundError:
    sys.exit("The server needs fastapi and uvicorn; install them with: pip install fastapi uvicorn")

if TYPE_CHECKING:
    from bot import Bot
    from fastapi import FastAPI

HERE = "02-NLP_tasks/08-retrieval_bot"
MOST = 64  # questions in one request

Question = Annotated[str, Field(min_length=1, max_length=300)]


class Request(BaseModel, extra="forbid"):
    """What a client sends."""

    questions: list[Question] = Field(min_length=1, max_length=MOST)
    k: int = Field(default=1, ge=1, le=20, description="answers for each question")


class Found(BaseModel):
    """One answer."""

    law: str
    answer: str
    score: float


class Reply(BaseModel):
    """The answers to one question; empty if the bot refuses."""

    question: str
    answered: bool
    answers: list[Found]


def application(bot: Bot) -> FastAPI:
    """The two routes: ``GET /health`` and ``POST /answer``."""
    from common.serve import local

    from fastapi import HTTPException

    app: FastAPI = local("Retrieval bot")  # this machine only: there is no login

    @app.get("/health")
    def health() -> dict[str, int | str]:
        return {"status": "ok", "entries": len(bot.entries)}

    @app.post("/answer")
    def answer(request: Request) -> list[Reply]:
        replies = []
        for question in request.questions:
            try:
                hits = bot.search(question, request.k)
            except RoadmapError as error:
                raise HTTPException(status_code=422, detail=str(error)) from error
            found = [Found(law=hit.entry["law"], answer=hit.entry["answer"], score=round(hit.score, 4)) for hit in hits]
            answered = bot.answers(hits)
            replies.append(Reply(question=question, answered=answered, answers=found if answered else []))
        return replies

    return app


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="serve.py", description="Serve a saved bot on 127.0.0.1.")
    made.add_argument("folder", nargs="?", type=Path, help="a saved bot (default: the one the notebook has made)")
    made.add_argument("--port", type=int, default=8008, help="default 8008; 0 takes any free one")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted; 1 is an error that the user can put right (one sentence)."""
    options = parser().parse_args(arguments)
    try:
        from common.serve import run

        from bot import Bot

        run(application(Bot.load(options.folder or outputs(HERE) / "bot")), options.port, "the bot at /answer")
    except RoadmapError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
