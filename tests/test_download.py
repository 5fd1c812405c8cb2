"""What a notebook cannot show: the worst answers of a server, killed processes, and how often a
server is asked.
"""

import gzip
import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
from PIL import Image

from skinrepro import download
from skinrepro.download import (
    fetch_file,
    fetch_many,
    inspect_image,
    new_session,
    read_log,
    retrieve,
)
from skinrepro.images import describe

QUICK = dict(delay=0, backoff=0.01, timeout=(2, 2), progress=False, decode=describe)


def md5(data):
    return hashlib.md5(data).hexdigest()


def jpeg(level, quality=90, fmt="JPEG"):
    "A small picture, different for each level."
    buffer = io.BytesIO()
    Image.linear_gradient("L").point(lambda v: (v + level) % 256).save(buffer, fmt, quality=quality)
    return buffer.getvalue()


class Site:
    """A web server on this machine. `pages`: path -> bytes, or function(handler, how often asked
    before).
    """

    def __init__(self, pages, port=0):
        self.pages, self.asked, self.starts = pages, Counter(), []
        self.lock, self.active, self.busiest = threading.Lock(), 0, 0
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                with site.lock:
                    before = site.asked[self.path]
                    site.asked[self.path] += 1
                    site.starts.append(time.monotonic())
                    site.active += 1
                    site.busiest = max(site.busiest, site.active)
                try:
                    page = site.pages.get(self.path)
                    if callable(page):
                        page(self, before)
                    elif page is None:
                        answer(self, 404, b"not found")
                    else:
                        answer(self, 200, page)
                except OSError:
                    pass  # the client has gone away
                finally:
                    with site.lock:
                        site.active -= 1

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(
            target=self.server.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True
        ).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def answer(h, code, body=b"", length=None, **headers):
    h.send_response(code)
    for k, v in headers.items():
        h.send_header(k.replace("_", "-"), v)
    h.send_header("Content-Length", str(len(body) if length is None else length))
    h.end_headers()
    h.wfile.write(body)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def serve():
    sites = []

    def start(pages, port=0):
        sites.append(Site(pages, port))
        return sites[-1]

    yield start
    for s in sites:
        s.close()


def items(site, bodies):
    "Rows for path -> expected bytes; the name is the MD5, as in Fitzpatrick17k."
    return pd.DataFrame(
        [dict(name=md5(b), md5=md5(b), url=site.url + path) for path, b in bodies.items()]
    )


def images(folder):
    return sorted(p.name for p in folder.glob("*.jpg"))


def all_right(folder):  # every file that looks like an image of the data set is that image
    return all(md5(p.read_bytes()) == p.stem for p in folder.glob("*.jpg"))


def test_each_kind_of_answer_has_its_outcome(serve, tmp_path):
    expected = {
        "/ok": "ok",
        "/agent": "ok",
        "/moved": "ok",
        "/gone": "missing",
        "/gone410": "missing",
        "/forbidden": "failed",
        "/html": "wrong",
        "/other": "wrong",
        "/saved-anew": "re-encoded",
        "/half": "corrupt",
        "/empty": "corrupt",
        "/loop": "failed",
        "/zip": "ok",
    }
    want = {p: jpeg(10 * i) for i, p in enumerate(expected)}

    def agent(h, _):
        answer(
            h,
            *(
                (200, want["/agent"])
                if h.headers["User-Agent"].startswith("Mozilla/")
                else (403, b"no robots")
            ),
        )

    site = serve(
        {
            "/ok": want["/ok"],
            "/agent": agent,
            "/moved": lambda h, _: answer(h, 301, Location="/here"),
            "/here": want["/moved"],
            "/gone410": lambda h, _: answer(h, 410),
            "/forbidden": lambda h, _: answer(h, 403, b"no"),
            "/html": b"<!DOCTYPE html><p>sorry",
            "/other": want["/ok"],
            "/saved-anew": jpeg(80, quality=40),
            "/half": want["/half"][:700],
            "/empty": b"",
            "/loop": lambda h, _: answer(h, 302, Location="/loop"),
            "/zip": lambda h, _: answer(
                h, 200, gzip.compress(want["/zip"]), Content_Encoding="gzip"
            ),
        }
    )
    got = fetch_many(items(site, want), tmp_path, **QUICK)
    assert dict(zip(want, got.status)) == expected
    assert images(tmp_path) == sorted(
        md5(want[p]) + ".jpg" for p in ("/ok", "/agent", "/moved", "/zip")
    ) and all_right(tmp_path)
    assert images(tmp_path / "re-encoded") == [md5(want["/saved-anew"]) + ".jpg"]  # kept apart
    assert (
        site.asked["/gone"] == site.asked["/forbidden"] == site.asked["/html"] == 1
    )  # answers, not trouble: asked once
    message = dict(zip(want, got.message))
    assert (
        "403" in message["/forbidden"]
        and "html" in message["/html"]
        and md5(want["/ok"]) in message["/other"]
    )


def test_the_same_placeholder_for_many_is_seen(serve, tmp_path):
    sorry = jpeg(99)
    want = {f"/{i}": jpeg(i) for i in range(3)}
    site = serve({"/0": sorry, "/1": want["/1"], "/2": sorry})
    assert fetch_many(items(site, want), tmp_path, **QUICK).status.tolist() == [
        "duplicate",
        "ok",
        "duplicate",
    ]


@pytest.mark.parametrize("broken", ["short", "cut", "chunked"])
def test_a_body_that_breaks_off_is_asked_again_and_never_kept(serve, tmp_path, broken):
    body = jpeg(0)

    def half(h, before):
        if before == 2:
            return answer(h, 200, body)
        if broken == "chunked":
            h.protocol_version = "HTTP/1.1"
            h.close_connection = True
            h.send_response(200)
            h.send_header("Transfer-Encoding", "chunked")
            h.end_headers()
            h.wfile.write(b"%x\r\n" % len(body) + body[:300])
            return
        answer(h, 200, body[:300] if broken == "short" else body[:-1], length=len(body))

    site = serve({"/a": half})
    first = fetch_many(items(site, {"/a": body}), tmp_path, retries=1, **QUICK)
    assert (
        first.status[0] == "corrupt"
        and first.attempts[0] == 2
        and "broke off" in first.message[0]
        and images(tmp_path) == []
    )
    assert fetch_many(items(site, {"/a": body}), tmp_path, retries=1, **QUICK).status[
        0
    ] == "ok" and all_right(tmp_path)


def test_silence_and_dribble_end_in_time(serve, tmp_path):
    want = {p: jpeg(i) for i, p in enumerate(["/silent", "/stall", "/dribble", "/ok"])}
    end = threading.Event()

    def stall(h, _):
        answer(h, 200, want["/stall"][:200], length=len(want["/stall"]))
        h.wfile.flush()
        end.wait(20)

    def dribble(h, _):
        answer(h, 200, length=100_000)
        for _ in range(300):  # 6 s, far beyond the deadline
            if end.wait(0.02):
                break
            h.wfile.write(b"\xff")
            h.wfile.flush()

    site = serve(
        {
            "/silent": lambda h, _: end.wait(20),
            "/stall": stall,
            "/dribble": dribble,
            "/ok": want["/ok"],
        }
    )
    t = time.monotonic()
    got = fetch_many(
        items(site, want),
        tmp_path,
        per_host=4,
        retries=1,
        **{**QUICK, "timeout": (1, 0.2)},
        deadline=0.8,
    )
    seconds = time.monotonic() - t
    end.set()
    assert (
        got.status.tolist() == ["failed", "failed", "failed", "ok"] and seconds < 4
    )  # the dribble is never silent, yet it ends
    assert "in time" in got.message[2] and site.asked["/stall"] == 2 and site.asked["/dribble"] == 1
    assert images(tmp_path) == [md5(want["/ok"]) + ".jpg"]


def test_a_server_that_recovers_is_asked_again(serve):
    body = jpeg(0)
    site = serve(
        {"/a": lambda h, before: answer(h, *((500, b"oops") if before < 2 else (200, body)))}
    )
    assert retrieve(new_session(), site.url + "/a", backoff=0.01) == (body, 3)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_respected(serve, form):
    body = jpeg(0)

    def busy(h, before):
        if before:
            answer(h, 200, body)
        else:
            answer(
                h,
                429,
                Retry_After="1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True),
            )

    site = serve({"/a": busy})
    told = []
    assert retrieve(new_session(), site.url + "/a", backoff=0.01, told_to_wait=told.append) == (
        body,
        2,
    )
    assert site.starts[1] - site.starts[0] >= 0.95 and len(told) == 1


def test_the_whole_site_waits_when_one_file_is_told_to(serve, tmp_path):
    want = {f"/{i}": jpeg(i) for i in range(4)}
    site = serve(
        {
            **want,
            "/0": lambda h, before: (
                answer(h, 200, want["/0"]) if before else answer(h, 503, Retry_After="1")
            ),
        }
    )
    assert (
        fetch_many(
            items(site, want), tmp_path, per_host=2, **{**QUICK, "delay": 0.2}
        ).status.tolist()
        == ["ok"] * 4
    )
    late = [t - site.starts[0] > 0.9 for t in site.starts]
    # the repeated request, and the two links that had not started (without the pause: at .4, .6 s)
    assert sum(late) >= 3


def test_a_long_retry_after_is_not_waited_for(serve):
    site = serve({"/a": lambda h, _: answer(h, 503, Retry_After="9")})
    t = time.monotonic()
    with pytest.raises(download.Unavailable, match="wait 9 s"):
        retrieve(new_session(), site.url + "/a", deadline=4)
    assert time.monotonic() - t < 2 and site.asked["/a"] == 1


def test_server_dies_halfway_and_the_rerun_asks_only_for_what_is_missing(serve, tmp_path):
    want = {f"/{i}": jpeg(i) for i in range(10)}
    enough = threading.Event()

    def last(h, _):
        answer(h, 200, want["/4"][:100], length=len(want["/4"]))
        enough.set()  # breaks off in the middle

    site = serve({**want, "/4": last})
    killer = threading.Thread(target=lambda: (enough.wait(10), site.close()))
    killer.start()
    table = items(site, want)
    first = fetch_many(table, tmp_path, per_host=1, retries=1, **{**QUICK, "backoff": 0.3})
    killer.join()
    done = (first.status == "ok").to_numpy()
    assert done[:4].all() and not done[4] and set(first.status[~done]) <= {"failed", "corrupt"}
    assert all_right(tmp_path) and done.sum() == len(images(tmp_path))
    again = serve(want, port=site.port)
    second = fetch_many(table, tmp_path, per_host=1, **QUICK)
    assert (second.status == "ok").all() and all_right(tmp_path)
    assert again.asked == {
        p: 1 for p, d in zip(want, done) if not d
    }  # each missing one once, and nothing else
    third = fetch_many(table, tmp_path, **QUICK)
    assert sum(again.asked.values()) == int((~done).sum()) and third.equals(
        second
    )  # complete: nobody is asked


def test_nobody_answers_and_we_stop_asking(tmp_path):
    table = pd.DataFrame(
        [
            dict(name=f"{i:032x}", md5=f"{i:032x}", url=f"http://127.0.0.1:9/{i}.jpg")
            for i in range(50)
        ]
    )
    got = fetch_many(table, tmp_path, per_host=1, give_up=3, retries=0, **QUICK)
    assert (
        (got.status == "failed").all()
        and (got.attempts > 0).sum() == 3
        and got.message[49].startswith("not asked")
    )


def test_final_answers_are_not_asked_again_unless_wanted(serve, tmp_path):
    want = {p: jpeg(i) for i, p in enumerate(["/gone", "/html", "/ill"])}
    pages = {"/html": b"<html>", "/ill": lambda h, _: answer(h, 500)}
    site = serve(pages)
    table = items(site, want)
    fetch_many(table, tmp_path, retries=0, **QUICK)
    fetch_many(table, tmp_path, retries=0, **QUICK)
    assert site.asked == {"/gone": 1, "/html": 1, "/ill": 2}
    pages.update(want)
    assert fetch_many(table, tmp_path, again=True, **QUICK).status.tolist() == ["ok"] * 3
    moved = table.assign(url=table.url + "?new")
    images_before = images(tmp_path)
    (tmp_path / images_before[0]).unlink()
    assert (
        fetch_many(moved, tmp_path, **QUICK).status != "ok"
    ).sum() == 1  # another link is another question


def test_the_log_keeps_what_other_calls_found(serve, tmp_path):
    want = {f"/{i}": jpeg(i) for i in range(4)}
    site = serve(want)
    table = items(site, want)
    fetch_many(table[:2], tmp_path, **QUICK)
    got = fetch_many(table[2:], tmp_path, **QUICK)
    assert (
        got.name.tolist() == table.name[2:].tolist()
        and len(read_log(tmp_path / "fetch_log.csv")) == 4
    )


def test_a_site_is_treated_with_respect(serve, tmp_path):
    want = {f"/{i}": jpeg(i) for i in range(12)}

    def slow(body):
        return lambda h, _: (time.sleep(0.05), answer(h, 200, body))

    site = serve({p: slow(b) for p, b in want.items()})
    fetch_many(items(site, want), tmp_path / "a", jobs=8, per_host=3, **QUICK)
    assert 2 <= site.busiest <= 3
    site.starts.clear()
    fetch_many(items(site, want), tmp_path / "b", jobs=8, per_host=8, **{**QUICK, "delay": 0.05})
    assert (
        max(site.starts) - min(site.starts) > 0.8 * 11 * 0.05
    )  # a busy machine makes it longer, never shorter, up to the jitter of both ends


def test_one_slow_site_does_not_hold_up_another(serve, tmp_path):
    end = threading.Event()
    slow = {f"/s{i}": jpeg(i) for i in range(6)}
    fast = {f"/f{i}": jpeg(100 + i) for i in range(6)}
    a, b = serve({p: lambda h, _: end.wait(5) for p in slow}), serve(fast)

    def release():  # let the slow site go once the fast one has answered all
        t = time.monotonic()
        while len(b.asked) < 6 and time.monotonic() - t < 4:
            time.sleep(0.01)
        seconds.append(time.monotonic() - t)
        end.set()

    seconds = []
    watcher = threading.Thread(target=release)
    watcher.start()
    fetch_many(
        pd.concat([items(a, slow), items(b, fast)], ignore_index=True),
        tmp_path,
        jobs=4,
        per_host=2,
        retries=0,
        **QUICK,
    )
    watcher.join()
    assert len(b.asked) == 6 and seconds[0] < 3


def test_a_wrong_file_in_the_folder_is_replaced_only_by_the_right_one(serve, tmp_path):
    want = {"/a": jpeg(0), "/b": jpeg(1)}
    site = serve({"/a": want["/a"]})
    table = items(site, want)
    for n in table.name:
        (tmp_path / f"{n}.jpg").write_bytes(b"<html>saved by another program</html>")
    assert fetch_many(table, tmp_path, **QUICK).status.tolist() == ["ok", "missing"]
    assert (tmp_path / f"{table.name[0]}.jpg").read_bytes() == want["/a"]
    assert (
        (tmp_path / f"{table.name[1]}.jpg").read_bytes().startswith(b"<html>")
    )  # the user's file; `verify` calls it wrong


CLIENT = """
import signal, sys, pandas as pd
# a shell that starts tests in the background has it ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
from skinrepro.download import fetch_many
fetch_many(pd.read_csv(sys.argv[1]), sys.argv[2], jobs=4, per_host=4, delay=0, progress=False)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill"])
def test_an_interrupted_process_leaves_no_half_written_image(serve, tmp_path, how):
    want = {f"/{i}": jpeg(i) for i in range(12)}
    end = threading.Event()

    def slowly(body):
        def page(h, _):
            answer(h, 200, body[: len(body) // 2], length=len(body))
            h.wfile.flush()
            if end.wait(5):
                h.wfile.write(body[len(body) // 2 :])

        return page

    site = serve({p: b if i < 4 else slowly(b) for i, (p, b) in enumerate(want.items())})
    table = items(site, want)
    table.to_csv(tmp_path / "items.csv", index=False)
    out = tmp_path / "out"
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, tmp_path / "items.csv", out],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    t = time.monotonic()
    while (len(images(out)) < 4 or site.active < 3) and time.monotonic() - t < 20:
        time.sleep(0.02)
    client.send_signal(how)
    _, err = client.communicate(timeout=20)
    assert (
        client.returncode != 0
        and images(out) == sorted(md5(want[f"/{i}"]) + ".jpg" for i in range(4))
        and all_right(out)
    )
    if how == signal.SIGINT:
        assert (
            "KeyboardInterrupt" in err
            and (read_log(out / "fetch_log.csv").status == "ok").sum() == 4
        )
    end.set()
    site.asked.clear()
    assert (fetch_many(table, out, **QUICK).status == "ok").all() and all_right(out)
    assert site.asked == {f"/{i}": 1 for i in range(4, 12)}


def test_a_folder_that_cannot_be_written_is_noticed_before_anyone_is_asked(serve, tmp_path):
    site = serve({"/a": jpeg(0)})
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="Cannot write"):
        fetch_many(items(site, {"/a": jpeg(0)}), tmp_path / "file" / "photos", **QUICK)
    assert not site.asked


def test_a_full_disk_ends_the_download_with_its_error(serve, tmp_path, monkeypatch):
    want = {f"/{i}": jpeg(i) for i in range(6)}
    site = serve(want)
    honest = download.atomic_path

    def full(path):
        if path.suffix == ".jpg":
            raise OSError(28, "No space left on device")
        return honest(path)

    monkeypatch.setattr(download, "atomic_path", full)
    with pytest.raises(OSError, match="No space left"):
        fetch_many(items(site, want), tmp_path, per_host=1, **QUICK)
    assert sum(site.asked.values()) <= 2  # it stops


def test_bad_requests_are_refused(tmp_path, serve):
    site = serve({})
    table = items(site, {"/a": jpeg(0), "/b": jpeg(1)})
    with pytest.raises(ValueError, match="occurs twice"):
        fetch_many(pd.concat([table, table]), tmp_path, **QUICK)
    with pytest.raises(ValueError, match="file name"):
        fetch_many(table.assign(name=["../up", "b"]), tmp_path, **QUICK)
    with pytest.raises(ValueError, match="jobs"):
        fetch_many(table, tmp_path, jobs=0, **QUICK)
    (tmp_path / "fetch_log.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="not a download log"):
        fetch_many(table, tmp_path, **QUICK)
    assert not site.asked


def test_malformed_links_are_outcomes_not_crashes(tmp_path):
    bad = ["not a link", "http://[", "file:///etc/passwd", "ftp://127.0.0.1/a.jpg", "http://", None]
    table = pd.DataFrame(
        [dict(name=f"{i:032x}", md5=f"{i:032x}", url=u) for i, u in enumerate(bad)]
    )
    got = fetch_many(table, tmp_path, retries=0, **QUICK)
    assert got.status.tolist() == ["failed"] * 5 + ["no-url"] and images(tmp_path) == []


def test_too_large_is_not_read_to_the_end(serve):
    site = serve({"/big": b"\xff\xd8" + bytes(400_000)})
    with pytest.raises(download.Unavailable, match="more than 100000 bytes") as e:
        retrieve(new_session(), site.url + "/big", limit=100_000)
    assert e.value.status == "wrong"


def test_fetch_file_names_the_remedy(serve, tmp_path):
    body = b"a,b\n"
    right = hashlib.sha256(body).hexdigest()
    site = serve({"/t.csv": body})
    with pytest.raises(ConnectionError, match="with a browser"):
        fetch_file(site.url + "/nothing", tmp_path / "t.csv", right)
    (tmp_path / "t.csv").write_text("mine")
    with pytest.raises(ValueError, match="Move it away"):
        fetch_file(site.url + "/t.csv", tmp_path / "t.csv", right)
    assert (tmp_path / "t.csv").read_text() == "mine" and site.asked["/t.csv"] == 0


@pytest.mark.parametrize(
    "data, status",
    [
        (jpeg(5), "ok"),
        (jpeg(5, fmt="PNG"), "re-encoded"),
        (jpeg(5, quality=95), "re-encoded"),
        (jpeg(5)[:-400], "corrupt"),
        (jpeg(5)[:30], "corrupt"),
        (b"", "corrupt"),
        (jpeg(5, fmt="PNG")[:200], "corrupt"),
        (b"PK\x03\x04zip", "wrong"),
        (b"\n <HTML>", "wrong"),
        (b'{"error": 404}', "wrong"),
    ],
)
def test_inspect_image(data, status):
    assert inspect_image(data, md5(jpeg(5)), decode=describe)[0] == status
