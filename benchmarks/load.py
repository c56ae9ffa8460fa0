"""The server under load: many clients at a time for some minutes, every answer compared with the right one.

The server is a process of its own with the demo preset. The right answers are computed beforehand, one after another,
by the pipeline in this process. Clients send single tasks, batches and clicks; some questions are new, the others have
been asked before. Meanwhile a third process asks for /health and /setup. Prints one JSON object:

    wrong_answers health_p99_ms setup_p99_ms rss_drift_mb requests tasks refused refused_past_bound ...

``refused``: requests answered 503 though no more clients were there than RSVP_MAX_REQUESTS (must be 0);
``refused_past_bound``: those of a burst of twice as many (must not be 0).

    python benchmarks/load.py --json [--clients 64] [--seconds 120]
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from rsvp_backend import presets
from rsvp_backend.demo.process import free_port
from rsvp_backend.labelstudio import rle
from rsvp_backend.labelstudio.tags import default_label_config
from rsvp_backend.scenes import EVALUATION_SEEDS_FROM, make_scene
from rsvp_backend.settings import Settings
from rsvp_backend.types import BoolMask

CONFIG = default_label_config()
NEW_SHARE, BATCH_SHARE, CLICK_SHARE = 0.25, 0.2, 0.1
SAME_IOU = 0.99
PREDICT_TIMEOUT_S = 300.0
"""Longer than any answer takes here: what is measured is that answers are right, not that some are left out."""
MIB = 2**20
Pictures = dict[str, bytes]


@dataclass(frozen=True)
class Known:
    """A question about a scene, and its right answer: all masks in one; a point inside of the object."""

    name: str
    instruction: str
    mask: BoolMask
    point_pct: tuple[float, float] | None


def main() -> None:
    parser = argparse.ArgumentParser(description="The server under load.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--clients", type=int, default=64, help="at a time (default: 64)")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long (default: 120)")
    parser.add_argument("--warm-up", type=float, default=45.0, help="seconds before, until the caches are full (45)")
    parser.add_argument("--scenes", type=int, default=40, help="different images (default: 40)")
    args = parser.parse_args()
    pictures, known = questions(args.scenes)
    with pictures_served(pictures) as url, server(url, args.clients) as (base, pid):
        figures = load(base, pid, url, known, args.clients, (args.warm_up, args.seconds))
        figures["refused_past_bound"] = burst(base, url, known, args.clients)
    sys.stdout.write(json.dumps(figures) + "\n" if args.json else "".join(f"{k:22} {v}\n" for k, v in figures.items()))


def questions(scenes: int) -> tuple[Pictures, list[Known]]:
    """Two questions about each scene, answered by the pipeline."""
    rsvp = presets.build(Settings())
    pictures: Pictures = {}
    known: list[Known] = []
    for seed in range(EVALUATION_SEEDS_FROM, EVALUATION_SEEDS_FROM + scenes):
        scene = make_scene(seed, "easy")
        file = io.BytesIO()
        scene.image.save(file, "PNG")
        pictures[f"{seed}.png"] = file.getvalue()
        for question in [one for one in scene.questions if one.present][:2]:
            outcome = rsvp(scene.image, question.instruction, ("Object",))
            rows, columns = np.nonzero(question.mask)
            height, width = question.mask.shape
            middle = (100 * (columns.mean() + 0.5) / width, 100 * (rows.mean() + 0.5) / height)
            known.append(Known(f"{seed}.png", question.instruction, outcome.union(width, height), middle))
    return pictures, known


@contextmanager
def pictures_served(pictures: Pictures) -> Iterator[str]:
    """Stands for Label Studio's file server; what follows a question mark is ignored."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = pictures.get(self.path.partition("?")[0].rpartition("/")[2], b"")
            self.send_response(200 if data else 404)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on the terminal."""

    class Many(ThreadingHTTPServer):
        request_queue_size = 256

    with Many(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@contextmanager
def server(pictures_url: str, limit: int) -> Iterator[tuple[str, int]]:
    """The real server process, its models loaded: its address and process id."""
    port = free_port(9190)
    env = {name: value for name, value in os.environ.items() if not name.startswith("RSVP_")} | {
        "RSVP_LABEL_STUDIO_URL": pictures_url,
        "RSVP_PREDICT_TIMEOUT_S": str(PREDICT_TIMEOUT_S),
        "RSVP_MAX_REQUESTS": str(limit),
        "RSVP_LOG_LEVEL": "ERROR",
    }
    command = [sys.executable, "-m", "rsvp_backend", "serve", "--port", str(port)]
    process = subprocess.Popen(command, env=env, cwd=Path(__file__).parents[1])
    base = f"http://127.0.0.1:{port}"
    try:
        until_s = time.monotonic() + 180
        while not _is_ready(base):
            if process.poll() is not None or time.monotonic() > until_s:
                raise RuntimeError("the server did not get ready")
            time.sleep(0.2)
        yield base, process.pid
    finally:
        process.terminate()
        process.wait(30)


def load(
    base: str, pid: int, url: str, known: list[Known], clients: int, seconds: tuple[float, float]
) -> dict[str, Any]:
    """All clients for the warm-up and the time after it; requests, answers and memory count from its end on."""
    spawn = multiprocessing.get_context("spawn")
    stop, found = spawn.Event(), spawn.Queue()
    watcher = spawn.Process(target=_watch, args=(base, stop, found))
    watcher.start()
    told: Counter[str] = Counter()
    until_s = time.monotonic() + sum(seconds)
    threads = [threading.Thread(target=_client, args=(base, url, known, n, until_s, told)) for n in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(seconds[0])
    early_mib, early = _resident_mib(pid), Counter(told)
    for thread in threads:
        thread.join()
    drift_mib = _resident_mib(pid) - early_mib
    stop.set()
    waits = found.get(timeout=60)
    watcher.join()
    return {
        "wrong_answers": told["wrong"],
        "health_p99_ms": _p99_ms(waits["health"]),
        "setup_p99_ms": _p99_ms(waits["setup"]),
        "health_max_ms": round(1000 * max(waits["health"]), 1),
        "rss_drift_mb": round(drift_mib, 1),
        "rss_mb": round(early_mib + drift_mib, 1),
        "requests": told["requests"] - early["requests"],
        "tasks": told["tasks"] - early["tasks"],
        "clicks": told["clicks"] - early["clicks"],
        "refused": told["refused"],
        "health_asked": len(waits["health"]),
        "clients": clients,
        "seconds": seconds[1],
    }


def burst(base: str, url: str, known: list[Known], clients: int) -> int:
    """Twice as many at once as there is room for: how many are refused, each with a time to come again."""
    answers: list[httpx.Response] = []

    def ask(number: int) -> None:
        with httpx.Client(base_url=base, timeout=PREDICT_TIMEOUT_S, trust_env=False) as http:
            answers.append(http.post("/predict", json=_body([_task(known[0], url, f"burst{number}")])))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(2 * clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [answer for answer in answers if answer.status_code == 503]
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert all(answer.status_code == 200 for answer in answers if answer not in refused)
    return len(refused)


def _client(base: str, url: str, known: list[Known], number: int, until_s: float, told: Counter[str]) -> None:
    chance = random.Random(number)
    with httpx.Client(base_url=base, timeout=PREDICT_TIMEOUT_S + 30, trust_env=False) as http:
        for turn in range(10**9):
            if time.monotonic() > until_s:
                return
            kind = chance.random()
            asked = chance.sample(known, chance.randint(2, 5) if kind < BATCH_SHARE else 1)
            clicked = asked[0].point_pct if kind > 1 - CLICK_SHARE else None
            fresh = f"{number}-{turn}" if clicked is None and chance.random() < NEW_SHARE else ""
            answer = http.post("/predict", json=_body([_task(one, url, fresh) for one in asked], clicked))
            _judge(answer, asked, clicked is not None, told)


def _judge(answer: httpx.Response, asked: list[Known], clicked: bool, told: Counter[str]) -> None:
    """A click's right answer is one mask that is not empty: what it refines depends on what was remembered."""
    told["requests"] += 1
    if answer.status_code == 503:
        told["refused"] += 1
        return
    results = answer.json()["results"] if answer.status_code == 200 else []
    told["tasks"] += len(results)
    told["clicks"] += clicked
    right = len(results) == len(asked) and all(
        (_mask(result, one).any() if clicked else _same(_mask(result, one), one.mask))
        for result, one in zip(results, asked, strict=True)
    )
    told["wrong"] += not right


def _mask(result: dict[str, Any], one: Known) -> BoolMask:
    found = np.zeros_like(one.mask)
    for region in result["result"]:
        if region["type"] == "brushlabels":
            found |= rle.decode(region["value"]["rle"], *one.mask.shape)
    return found


def _same(found: BoolMask, right: BoolMask) -> bool:
    """Another number of threads may add up in another order: a pixel on the border may differ."""
    union = np.count_nonzero(found | right)
    return not union or np.count_nonzero(found & right) >= SAME_IOU * union


def _task(one: Known, url: str, fresh: str) -> dict[str, Any]:
    return {"id": 1, "data": {"image": f"{url}/{one.name}?{fresh}", "instruction": one.instruction}}


def _body(tasks: list[dict[str, Any]], point_pct: tuple[float, float] | None = None) -> dict[str, Any]:
    context = None
    if point_pct is not None:
        value = {"x": point_pct[0], "y": point_pct[1], "width": 0.2, "keypointlabels": ["Object"]}
        click = {
            "type": "keypointlabels", "from_name": "clicks", "to_name": "image", "is_positive": True, "value": value,
            "original_width": 1, "original_height": 1, "image_rotation": 0, "origin": "manual",
        }  # fmt: skip
        context = {"result": [click]}
    return {"tasks": tasks, "label_config": CONFIG, "project": "1.1", "params": {"context": context}}


def _watch(base: str, stop: Event, found: multiprocessing.Queue[dict[str, list[float]]]) -> None:
    """As Label Studio asks: by a new connection each time, within its time limits."""
    waits: dict[str, list[float]] = {"health": [], "setup": []}
    setup = json.dumps({"project": "1.1", "schema": CONFIG})
    host = base.removeprefix("http://")
    while not stop.wait(0.05):
        for name, method, body, limit_s in (("health", "GET", None, 1.0), ("setup", "POST", setup, 3.0)):
            began_s = time.perf_counter()
            connection = HTTPConnection(host, timeout=limit_s)
            connection.request(method, f"/{name}", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            connection.close()
            waits[name].append(time.perf_counter() - began_s)
            assert answer.status == 200, f"/{name} answered {answer.status}"
    found.put(waits)


def _is_ready(base: str) -> bool:
    try:
        return bool(httpx.get(f"{base}/health", trust_env=False).json()["state"] == "ready")
    except httpx.TransportError:
        return False


def _resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def _p99_ms(waits_s: list[float]) -> float:
    return round(1000 * float(np.percentile(waits_s, 99)), 1)


if __name__ == "__main__":
    main()
