"""A notebook opened in JupyterLab, in a real browser: it runs to the end and shows its plots, as a
person would see it.

The browser is the Chromium of the machine, driven through its own debugging protocol: no driver
program and no further package is needed. Skipped where no Chromium is; `SKINREPRO_BROWSER` names
one that is not on the PATH.
"""

import base64
import http.client
import io
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from skinrepro.core import paths

NOTEBOOK = "50_metrics.ipynb"  # short, and has plots
PATIENCE = 240  # seconds for a run on a busy machine; 30 are usual
pytestmark = pytest.mark.browser


def chromium() -> str | None:
    "A browser of the Chromium family on this machine."
    names = [
        "chromium",
        "chromium-browser",
        "google-chrome",
        "google-chrome-stable",
        "chrome",
        "microsoft-edge",
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
    ]
    return next(
        filter(None, map(shutil.which, [os.environ.get("SKINREPRO_BROWSER") or "", *names])), None
    )


def until(question, what, seconds=60, every=0.2):
    "Wait for a true answer, and return it."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := question():
            return answer
        time.sleep(every)
    raise TimeoutError(f"{what}: not after {seconds} s")


def ask(port, path, method="GET", token="", timeout=20):
    "Request to a server on this machine, past any proxy."
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        c.request(method, path, headers={"Authorization": f"token {token}"} if token else {})
        return c.getresponse().read()
    finally:
        c.close()


@contextmanager
def started(command, log: Path, ask_to_stop=lambda: None, **options):
    "A process that is asked to stop, then told, then made to; its children go with it."
    import psutil

    with open(log, "wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **options
        )
    try:
        yield process
    finally:
        family = (
            psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        )
        for stop in (ask_to_stop, process.terminate, process.kill):
            if process.poll() is not None:
                break
            try:
                stop()
                process.wait(10)
            except (OSError, http.client.HTTPException, subprocess.TimeoutExpired):
                pass
        for p in psutil.wait_procs(family, timeout=5)[1]:
            p.kill()


@contextmanager
def jupyterlab(folder: Path, home: Path):
    """A JupyterLab of our own on `folder`, apart from the settings of whoever runs the tests.
    Yields port, token.
    """
    settings = home / "config" / "lab" / "user-settings" / "@jupyterlab"
    # outside the window cells are not drawn unless asked for, and a box that offers news would
    # stand in the way
    for name, values in {
        "notebook-extension/tracker": {"windowingMode": "none"},
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }.items():
        file = settings / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    env = {
        k: v
        for k, v in os.environ.items()
        if k != "MPLBACKEND" and not k.startswith(("JUPYTER", "PYTEST"))
    }
    env |= {f"JUPYTER_{k}_DIR": str(home / k.lower()) for k in ("CONFIG", "DATA", "RUNTIME")} | {
        "IPYTHONDIR": str(home / "ipython")
    }
    token = secrets.token_hex(16)
    port = []
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        "--port=0",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.extension_manager=readonly",
    ]

    def where():  # the server writes its port into a file once it listens
        for f in (home / "runtime").glob("jpserver-*.json"):
            try:
                return json.loads(f.read_text())["port"]
            except (ValueError, KeyError, OSError):
                pass
        if server.poll() is not None:
            raise RuntimeError(f"JupyterLab ended early: {(home / 'lab.log').read_text()[-2000:]}")

    with started(
        command,
        home / "lab.log",
        lambda: ask(port[0], "/api/shutdown", "POST", token),
        cwd=folder,
        env=env,
    ) as server:
        port.append(until(where, "JupyterLab starts"))
        until(lambda: b"version" in _quiet(port[0], "/api"), "JupyterLab answers")
        yield port[0], token


def _quiet(*args):
    try:
        return ask(*args)
    except OSError:
        return b""


class Page:
    "One page of a browser, through the Chrome DevTools Protocol."

    def __init__(self, port):
        import websocket

        def pages():
            return [
                t for t in json.loads(_quiet(port, "/json/list") or "[]") if t["type"] == "page"
            ]

        address = until(pages, "the browser opens a page")[0]["webSocketDebuggerUrl"]
        self.socket = websocket.create_connection(
            address, timeout=60, suppress_origin=True, http_no_proxy=["127.0.0.1"]
        )
        self.n = 0

    def send(self, method, **params):
        self.n += 1
        self.socket.send(json.dumps({"id": self.n, "method": method, "params": params}))
        while True:  # events in between are not of interest
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.n:
                break
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def js(self, expression):
        r = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in r:
            raise RuntimeError(f"{expression}: {r['exceptionDetails']}")
        return r["result"].get("value")

    def click(self, element):
        """Move the mouse to the middle of what the expression finds, and click; False when there is
        nothing to click.
        """
        at = self.js(
            f"(() => {{ const e = {element}; if (!e) return null; const r ="
            " e.getBoundingClientRect(); return r.width && r.height ? [r.x + r.width/2, r.y +"
            " r.height/2] : null; })()"
        )
        if at is None:
            return False
        for kind, held in (
            ("mouseMoved", "none"),
            ("mousePressed", "left"),
            ("mouseReleased", "left"),
        ):
            self.send(
                "Input.dispatchMouseEvent",
                type=kind,
                x=at[0],
                y=at[1],
                button=held,
                clickCount=int(held == "left"),
            )
        return True

    def screenshot(self, file):
        file.write_bytes(
            base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
        )


@contextmanager
def browser(home: Path):
    """A headless Chromium with a profile of its own that reaches nothing but this machine. Yields a
    Page.
    """
    command = [
        chromium(),
        "--headless=new",
        "--remote-debugging-port=0",
        f"--user-data-dir={home}",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--no-default-browser-check",
        "--no-proxy-server",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--window-size=1500,1100",
        "about:blank",
    ]

    def port():
        if process.poll() is not None:
            raise RuntimeError(
                f"{command[0]} ended early: {log.read_text(errors='replace')[-2000:]}"
            )
        file = home / "DevToolsActivePort"
        return (
            int(file.read_text().split()[0]) if file.exists() and file.read_text().split() else None
        )

    log = home.with_suffix(".log")
    with started(command, log) as process:
        page = Page(until(port, "the browser starts"))
        try:
            yield page
        finally:
            page.socket.close()


STATE = """(() => {
  const cells = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')];
  const text = c => (c.querySelector('.jp-InputPrompt')?.innerText || '').trim();
  return {cells: cells.length, waiting: cells.filter(c => text(c) === '[*]:').length,
          done: cells.filter(c => /^\\[\\d+\\]:$/.test(text(c))).length,
          images: [...document.querySelectorAll('.jp-Notebook .jp-OutputArea-output img')]
            .map(i => [i.src, i.complete, i.naturalWidth])};
})()"""


def MENU(name):
    items = "[...document.querySelectorAll('.lm-MenuBar-item')]"
    return f"{items}.find(e => e.innerText.trim() === '{name}')"


def ENTRY(command):
    item = f'.lm-Menu-item[data-command="{command}"]:not(.lm-mod-disabled)'
    return f"document.querySelector('{item}')"


AGREE = "document.querySelector('.jp-Dialog button.jp-mod-accept')"


def agree(page):
    """Accept what stands in the way, such as the question which kernel to use; twice would start it
    twice.
    """
    if page.click(AGREE):
        until(lambda: not page.js(f"!!{AGREE}"), "the dialog closes", 10)


def run_all(page, port, token, notebook: Path, picture: Path):
    """Open the notebook, Run > Run All Cells, File > Save, as a person does. Returns the images of
    the page and the code cells as saved.
    """
    code = sum(
        c["cell_type"] == "code" and bool("".join(c["source"]).strip())
        for c in json.loads(notebook.read_text())["cells"]
    )
    page.send("Page.enable")
    page.send(
        "Page.navigate", url=f"http://127.0.0.1:{port}/lab/tree/{notebook.name}?token={token}"
    )
    until(
        lambda: (
            page.js(STATE)["cells"] == code
            and page.js("!document.querySelector('#jupyterlab-splash')")
        ),
        "the notebook opens",
    )

    # cells that are run before the page is connected make JupyterLab ask for a kernel
    def kernel_is_ready():
        agree(page)
        kernels = json.loads(ask(port, "/api/kernels", token=token))
        return kernels and all(k["execution_state"] == "idle" and k["connections"] for k in kernels)

    until(kernel_is_ready, "the kernel is ready")
    time.sleep(1)

    def is_running():
        agree(page)
        choose(page, "Run", "runmenu:run-all")
        time.sleep(1)
        s = page.js(STATE)
        return s["waiting"] or s["done"]

    until(is_running, "Run All Cells starts")
    # an error leaves the cells after it without a number, so what is waited for is that nothing
    # waits
    until(
        lambda: agree(page) or kernel_is_ready() and not page.js(STATE)["waiting"],
        "the notebook runs to its end",
        PATIENCE,
        0.5,
    )
    page.js(
        "document.querySelector('.jp-OutputArea-output img')?.scrollIntoView({block: 'center'})"
    )
    time.sleep(1)
    page.screenshot(picture)
    before = notebook.stat().st_mtime_ns
    until(
        lambda: choose(page, "File", "docmanager:save") or notebook.stat().st_mtime_ns > before,
        "the notebook is saved",
        every=1,
    )
    return page.js(STATE)["images"], [
        c
        for c in json.loads(notebook.read_text())["cells"]
        if c["cell_type"] == "code" and c["source"]
    ]


def choose(page, menu, command):
    "Choose an entry of a menu; nothing happens while it is grey."
    if not page.js(f"!!{ENTRY(command)}"):
        page.click(MENU(menu))
        time.sleep(0.5)
    page.click(ENTRY(command)) or page.click(
        "document.querySelector('.jp-NotebookPanel-toolbar')"
    )  # else close the menu again


@pytest.mark.skipif(
    chromium() is None, reason="no Chromium on this machine (on Debian: apt-get install chromium)"
)
def test_a_notebook_runs_in_jupyterlab_and_shows_its_plots(tmp_path):
    pytest.importorskip("jupyterlab")
    pytest.importorskip("websocket")
    from PIL import Image

    folder, home = tmp_path / "work", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    shutil.copy(paths().nbs / NOTEBOOK, folder)  # a copy, elsewhere: JupyterLab saves what it runs
    with jupyterlab(folder, home) as (port, token), browser(tmp_path / "browser") as page:
        try:
            images, cells = run_all(page, port, token, folder / NOTEBOOK, tmp_path / "page.png")
        except TimeoutError as e:
            page.screenshot(tmp_path / "page.png")
            raise AssertionError(f"{e}; see {tmp_path / 'page.png'} and {home / 'lab.log'}") from e
    errors = [
        f"{o['ename']}: {o['evalue']}"
        for c in cells
        for o in c["outputs"]
        if o["output_type"] == "error"
    ]
    assert not errors, f"{NOTEBOOK}: {errors[0]}"
    assert all(c["execution_count"] for c in cells), (
        f"{sum(not c['execution_count'] for c in cells)} cells of {NOTEBOOK} did not run"
    )
    plots = [
        src
        for src, complete, width in images
        if src.startswith("data:image/png;base64,") and complete and width >= 100
    ]
    assert plots, f"no plot among {len(images)} images of the page; see {tmp_path / 'page.png'}"
    for src in plots:  # drawn, not blank
        image = Image.open(io.BytesIO(base64.b64decode(src.split(",")[1]))).convert("RGB")
        assert min(image.size) >= 50 and len(image.getcolors(1 << 24)) >= 20
