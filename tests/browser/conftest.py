"""One headless Chromium, one small study, one `bisam-ray ui` for all tests; nothing leaves this machine.

Chromium is Debian's (apt-get install chromium) or any on the PATH; without it the tests are skipped. What the pages
looked like is kept in the folder named by BISAM_RAY_SCREENSHOTS, else in pytest's.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bisam_ray.api import headline, render
from bisam_ray.study.ledger import Ledger, Study, read
from bisam_ray.study.outcome import summarize
from bisam_ray.study.session import Session
from bisam_ray.study.tracking.client import tracking_uri
from bisam_ray.study.tracking.mirror import Mirror

from .small import write

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --font-render-hinting=none"
# MLflow's own: it asks who is logged in, and a server without accounts has no such page; its layout of charts
MLFLOWS_OWN = ("/ajax-api/2.0/mlflow/users/current", "ResizeObserver loop completed with undelivered notifications")
PATIENCE_MS = 20_000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    lacking = [] if CHROMIUM else ["Chromium (apt-get install chromium)"]
    lacking += [name for name in ("playwright", "axe_playwright_python") if find_spec(name) is None]
    for item in items if lacking else ():
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"not here: {', '.join(lacking)}"))


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield chromium
        chromium.close()


@dataclass
class Seen:
    """What went wrong while a page was open."""

    errors: list[str] = field(default_factory=list)

    def watch(self, page: Any, home: str) -> None:
        def console(message: Any) -> None:
            whole = f"{message.text} {message.location.get('url', '')}"
            if message.type == "error" and not (home.startswith("http") and any(own in whole for own in MLFLOWS_OWN)):
                self.errors.append(f"console: {message.text}")

        def request(request: Any) -> None:
            if not request.url.startswith((home, "data:", "blob:", "about:")):
                self.errors.append(f"request: {request.url}")

        page.on("console", console)
        page.on("pageerror", lambda error: self.errors.append(f"page: {error}"))
        page.on("request", request)


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages that may ask for nothing outside `home`; the test fails if one reports an error."""
    seen, contexts = Seen(), []

    def open_page(url: str, home: str, width: int = 1600, height: int = 1000, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        seen.watch(page, home)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert seen.errors == []


Keep = Callable[[Any, str], None]


@pytest.fixture(scope="package")
def keep(tmp_path_factory: pytest.TempPathFactory) -> Keep:
    """Keeps a picture of what is seen, under a name."""
    named = os.environ.get("BISAM_RAY_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)

    def keep(page: Any, name: str) -> None:
        Image.open(BytesIO(page.screenshot())).save(folder / f"{name}.webp", quality=70, method=6)

    return keep


@pytest.fixture(scope="package")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small study's, with its report."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    place = write(tmp_path_factory.mktemp("browser"))
    with Ledger(place) as ledger:
        session = Session(place, ledger)
        render(place, session)
        found = summarize(read(place))
        assert found is not None
        kept = [name for arm in found.arms for name in arm.kept]
        session.artifact("summary", place / "summary.md", **{**headline(found), "kept": kept})
    return place


@pytest.fixture(scope="package")
def report(directory: Path) -> Path:
    return directory / "report.html"


@pytest.fixture(scope="package")
def study(directory: Path) -> Study:
    """The same, in MLflow too."""
    mirror = Mirror(directory, tracking_uri(directory.parent), interval_s=0.05).start()
    assert mirror.close(60), mirror.problem
    return read(directory)


@dataclass(frozen=True)
class Server:
    """`bisam-ray ui`, its first address, and the views it told."""

    url: str
    views: dict[str, str]
    experiment: str
    runs: dict[str, str]  # run name: MLflow's id
    parent: str


@pytest.fixture(scope="package")
def server(study: Study) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ui(study.directory.parent, port) as lines:
        url = f"http://127.0.0.1:{port}"
        addresses = [line.strip() for line in lines if line.strip().startswith(url)]
        views = {address.partition("viewStateShareKey=")[2].partition("&")[0]: address for address in addresses}
        cursor = json.loads((study.directory / "mlflow.json").read_bytes())
        yield Server(url, views, cursor["experiment"], cursor["runs"], cursor["parent"])


@contextmanager
def ui(storage: Path, port: int) -> Iterator[list[str]]:
    """Start `bisam-ray ui`, wait until it answers, give what it printed, end it."""
    told = storage / "ui.log"
    command = [sys.executable, "-m", "bisam_ray", "ui", "--storage", str(storage), "--port", str(port)]
    with open(told, "w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                    break
                assert process.poll() is None, told.read_text()
                assert time.monotonic() < deadline, "bisam-ray ui did not come up"
                time.sleep(0.2)
            yield told.read_text().splitlines()
        finally:
            process.terminate()
            process.wait(20)
