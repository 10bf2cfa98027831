"""The explorer: what its page is given, what its server refuses, and in a browser that clicks do what they say."""

import base64
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import browsing
from conftest import TINY_CFG, TOKEN_CFG, make_model, make_token_model, run_command
from other_model import OtherSubject, draw

import loopprobe
from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import write_dataset
from loopprobe.probes.session import probe
from loopprobe.show.explore.exploration import Exploration
from loopprobe.show.explore.page import packed, view_of
from loopprobe.show.explore.server import HOST, ExplorerServer
from loopprobe.store.checkpoint import Checkpoint, save
from loopprobe.store.subject import PromptSpec


def unpacked(one):
    values = np.frombuffer(base64.b64decode(one["data"]), "<" + one["type"]).reshape(one["shape"])
    return values / 65535 if one["type"] == "u2" else values


def boot_of(page):
    return json.loads(re.search(r'<script type="application/json" id="boot">(.*?)</script>', page, re.S)[1])


@pytest.fixture
def exploration(checkpoint):
    spec = PromptSpec(prompts=8)
    return Exploration(checkpoint, checkpoint.draw(spec), spec)


# What the page is given


def test_arrays_survive_their_packing():
    values = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("f4")
    values[0, 0, 0] = np.nan
    np.testing.assert_array_equal(unpacked(packed(values)), values)
    shares = np.random.default_rng(0).dirichlet(np.ones(5), size=(3, 2))
    np.testing.assert_allclose(unpacked(packed(shares, share=True)), shares, atol=0.5 / 65535)


def test_a_view_holds_the_dataset(checkpoint):
    data = probe("explore", checkpoint, 6, prompt=2, reset=(1,))
    view = json.loads(json.dumps(view_of(data), allow_nan=False))
    for name in ("error", "median", "answer_error", "prediction", "path", "pattern"):
        np.testing.assert_allclose(unpacked(view["arrays"][name]), data[name], atol=1e-5, rtol=1e-6)
    assert (view["runs"], view["loops"], view["prompt"]) == (["clean", "changed"], [1, 2, 3, 4], 2)
    assert view["tokens"][:2] == data.token.values[:2].tolist()
    assert view["query"] == 10


def test_attention_that_is_too_large_is_left_out_and_said_so(checkpoint, monkeypatch):
    monkeypatch.setattr("loopprobe.show.explore.page.MOST_PATTERNS", 100)
    view = view_of(probe("explore", checkpoint, 2))
    assert "pattern" not in view["arrays"]
    assert "too large for a page" in view["told"]


@pytest.mark.parametrize("kind", ["numbers", "tokens", "pairs"])
def test_a_saved_page_needs_nothing_else(kind, checkpoint, token_checkpoint, tmp_path):
    """A model of regression, one of tokens, and one that knows only the protocols."""
    subject = {"numbers": checkpoint, "tokens": token_checkpoint, "pairs": OtherSubject()}[kind]
    prompts = draw(4) if kind == "pairs" else subject.held_out(4)
    path = loopprobe.explore(subject, prompts, shown=2).save(tmp_path / "page.html")
    page = path.read_text()
    assert "<script src" not in page
    assert not re.search(r'<link [^>]*href="(?!data:)', page)
    boot = boot_of(page)
    assert (boot["live"], boot["shown"], sorted(boot["views"])) == (False, [0, 1], ["0", "1"])
    assert ("topAnswer" in boot["views"]["0"]) == (kind == "tokens")


def test_words_of_prompts_end_no_script(token_checkpoint):
    data = probe("explore", token_checkpoint, 2)
    data["token"] = data.token.astype(object).where(data.position != 0, "</script><script>alert(1)").astype(str)
    page = loopprobe.explore(data).html()
    assert "</script><script>alert" not in page
    assert boot_of(page)["views"]["0"]["tokens"][0] == "</script><script>alert(1)"


def test_an_exploration_draws_what_is_asked_for(exploration, checkpoint):
    one = exploration.view({"prompts": {"seed": 5}, "options": {"prompt": 3, "loops": 2, "heads": [[0, 1]]}})
    data = probe("explore", checkpoint, checkpoint.held_out(8, seed=5), prompt=3, loops=2, heads=((0, 1),))
    assert one["tokens"] == data.token.values.tolist()
    np.testing.assert_allclose(unpacked(one["arrays"]["error"]), data.error, rtol=1e-5)


def test_the_length_of_a_token_task_can_be_chosen(token_checkpoint):
    exploration = loopprobe.explore(token_checkpoint, 4)
    assert exploration.offers == {"seed": True, "length": True, "text": False}
    assert len(exploration.view({"prompts": {"length": 2}})["tokens"]) == len(exploration.view({})["tokens"]) - 1


def test_effects_are_those_of_the_patch_probe(exploration, checkpoint):
    found = exploration.effects({"options": {"prompt": 2}, "corruption": "label"})
    data = probe("patch", checkpoint, checkpoint.held_out(8)[2:3], sites=("z",), corruption="label")
    np.testing.assert_allclose(unpacked(found["values"]), data.z, atol=1e-5)
    assert found["positions"] == data.position.values.tolist()


@pytest.mark.parametrize(
    ("tree", "match"),
    [
        ({"options": {"loops": 5000}}, "at most 2,000"),
        ({"options": {"loops": 0}}, "loops"),
        ({"options": {"reset": [99]}}, "position 99"),
        ({"options": {"prompt": 99}}, "must be below 8"),
        ({"options": {"heads": "all"}}, "heads"),
        ({"option": {}}, "option"),
        ({"prompts": {"text": "hello"}}, "text is no choice"),
        ({"prompts": {"length": 3}}, "length is no choice"),
        ({"prompts": {"seed": -1}}, "seed"),
        ({"prompts": {"seed": "1"}}, "seed"),
        ({"prompts": 3}, "prompts"),
    ],
)
def test_what_a_page_may_not_ask_is_refused_in_a_line(exploration, tree, match):
    with pytest.raises(LoopprobeError, match=match) as error:
        exploration.view(tree)
    assert "\n" not in str(error.value)
    assert not exploration.lock.locked()


def test_given_prompts_leave_no_choice(checkpoint):
    exploration = loopprobe.explore(checkpoint, checkpoint.held_out(3))
    assert not any(exploration.offers.values())
    with pytest.raises(LoopprobeError, match="seed is no choice"):
        exploration.view({"prompts": {"seed": 1}})


# In a session


def test_a_model_alone_is_explored_with_its_inputs(model, token_checkpoint):
    xs, ys = torch.zeros(2, 6, 3), torch.ones(2, 6)
    exploration = model.explore(xs, ys, loops=2)
    view = exploration.view({})
    assert view["loops"] == [1, 2]
    assert view["right"] == ["1.00"] * 6
    words = token_checkpoint.model.explore(torch.tensor([[1, 2, 3]]))
    assert len(words.view({})["tokens"]) == 3


@pytest.mark.parametrize(
    ("what", "prompts", "match"),
    [
        ("nope-b5", None, "no checkpoint is called"),
        ("nope.nc", None, "no results at nope.nc"),
        (3, None, "a int cannot be explored"),
        ("model", None, "no task to draw prompts from"),
        ("checkpoint", "a text", "must be prompts of tiny, or how many"),
        ("checkpoint", 0, "must be prompts of tiny, or how many"),
    ],
)
def test_what_cannot_be_explored_gets_one_line(what, prompts, match, checkpoint):
    what = {"model": checkpoint.model, "checkpoint": checkpoint}.get(what, what)
    with pytest.raises(LoopprobeError, match=match) as error:
        loopprobe.explore(what, prompts)
    assert "\n" not in str(error.value)


def test_in_a_notebook_it_is_a_frame_with_the_page(checkpoint):
    exploration = loopprobe.explore(checkpoint, 2)
    frame = exploration._repr_html_()
    assert frame.startswith("<iframe srcdoc=")
    assert frame.count('"') == 2 * frame.count('="')  # the page within ends no attribute
    assert repr(exploration).startswith("Exploration(tiny, Prompts(2 prompts")


@pytest.mark.parametrize("name", ["lens", "explore"])
def test_a_file_of_a_probe_is_a_page(name, checkpoint, tmp_path, monkeypatch, capsys):
    write_dataset(probe(name, checkpoint, 6), tmp_path / "data.nc")
    code, out, err = run_command(monkeypatch, capsys, "explore", "data.nc", "--out", "page")
    assert (code, out, err) == (0, "page/explore.html\n", "")
    page = (tmp_path / "page" / "explore.html").read_text()
    if name == "lens":
        assert 'id="lens-by-point"' in page
        assert "after 0 attention" in page  # a cell of the table
    else:
        assert boot_of(page)["views"]["0"]["loops"] == [1, 2, 3, 4]


def test_what_is_made_from_others_is_a_page(checkpoint):
    masks = [probe("mask", checkpoint, 6, mode=mode, n=(1, 2), loops=4) for mode in ("first", "last")]
    page = loopprobe.explore(loopprobe.difference(*masks)).html()
    assert 'class="plotly-graph-div"' in page
    assert 'id="mask"' in loopprobe.explore(masks).html()


# The command line


@pytest.fixture
def tiny(tmp_path):
    """Tiny models in ./runs, by their names."""
    for name, cfg, model in (
        ("tiny", TINY_CFG, make_model(torch.float32)),
        ("tiny-add", TOKEN_CFG, make_token_model()),
    ):
        (tmp_path / "runs" / name).mkdir(parents=True)
        save(Checkpoint(cfg, model), tmp_path / "runs" / name)
    return "tiny"


def test_a_written_page_holds_effects_where_they_are_asked_for(tiny, command, tmp_path):
    code, out, _ = command("explore", tiny, "--out", "page", "--effects", "--shown", 1, "--loops", 3, "--prompts", 4)
    assert (code, out) == (0, "page/explore.html\n")
    [view] = boot_of((tmp_path / "page" / "explore.html").read_text())["views"].values()
    assert view["effects"]["loops"] == [1, 2, 3]
    assert command("explore", tiny, "--out", "page", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("tiny", "--ckpt", "tiny-add"), "takes one model and 2 are given"),
        (("tiny", "--effects"), "add --static"),
        (("tiny", "--png"), "drop --png"),
        (("tiny", "--loops", "0"), "loops (0)"),
        (("tiny", "--port", "-1"), "port (-1)"),
        (("tiny", "--port", "99999"), "port 99999 cannot be used"),
        (("tiny", "--json"), "add --static"),
        (("tinny",), "no checkpoint is called 'tinny'"),
        (("data.nc", "--out", "x"), "no results at data.nc"),
    ],
)
def test_bad_options_get_one_line_and_write_nothing(tiny, command, arguments, match, tmp_path):
    code, out, err = command("explore", *arguments, "--no-open")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert match in err
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "results").exists()


def test_the_shell_completes_names_without_torch(tiny):
    words = {"_LOOPPROBE_COMPLETE": "complete_bash", "COMP_WORDS": "loopprobe lens --ckpt tiny", "COMP_CWORD": "3"}
    code = "import sys\nfrom loopprobe.cli import main\nsys.argv = ['loopprobe']\ntry:\n    main()\nfinally:\n"
    code += "    assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | words, capture_output=True, text=True)
    assert done.stdout.split() == ["tiny", "tiny-add"], done.stderr
    from loopprobe.cli.options import named

    assert named("hf:ra") == ["hf:raven-docs"]


# The server


@pytest.fixture
def server(exploration):
    running = ExplorerServer(exploration)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def request(server, method="POST", path="view", body=b"{}", host=None, **headers):
    """The status and the body of an answer; a path that does not begin with a slash stands behind the secret."""
    connection = http.client.HTTPConnection(HOST, server.server_port, timeout=30)
    path = path if path.startswith("/") else f"/{server.token}/{path}"
    headers = {"Host": host or f"{HOST}:{server.server_port}", "Content-Type": "application/json"} | headers
    with contextlib.closing(connection):
        connection.request(method, path, body if method == "POST" else None, headers)
        with connection.getresponse() as answer:  # it holds the socket until it is closed
            content = answer.read().decode()
    return answer.status, content if answer.getheader("Content-Type", "").startswith("text") else json.loads(content)


def test_the_server_sends_the_page_and_views(server, exploration):
    status, page = request(server, "GET", "")
    assert status == 200
    boot = boot_of(page)
    assert boot["live"]
    assert boot["able"] == {"reset": True, "hide": True, "heads": True, "attention": True, "mlps": True}
    status, view = request(server, body=json.dumps({"options": {"reset": [0, 1]}}).encode())
    assert (status, view["runs"]) == (200, ["clean", "changed"])
    assert view == exploration.view({"options": {"reset": [0, 1]}})
    status, effects = request(server, path="effects", body=b'{"exact": false}')
    assert (status, effects["loops"]) == (200, [1, 2, 3, 4])


def test_it_listens_on_the_loopback_address_alone(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_hosts_pages_and_paths_are_refused(server, method):
    path = "" if method == "GET" else "view"
    assert request(server, method, path, host=f"localhost:{server.server_port}")[0] == 200
    for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1", "127.0.0.1:1", "[::1]:80"):
        assert request(server, method, path, host=host)[0] == 403, host
    assert request(server, method, path, Origin=f"http://127.0.0.1:{server.server_port}")[0] == 200
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{server.server_port}", "http://127.0.0.1"):
        assert request(server, method, path, Origin=origin)[0] == 403, origin
    for wrong in (
        "/",
        "/view",
        f"/{server.token[:-1]}/{path}",
        f"/{server.token}x/{path}",
        f"/{server.token}/{path}/..",
    ):
        assert request(server, method, wrong)[0] == 404, wrong
    assert request(server, method, "/%C3%A9")[0] == 404


@pytest.mark.parametrize(
    ("body", "headers", "status", "match"),
    [
        (b"", {}, 400, "one JSON object"),
        (b"[]", {}, 400, "one JSON object"),
        (b"{", {}, 400, "one JSON object"),
        (b"\xff", {}, 400, "one JSON object"),
        (b"[" * 100_000, {}, 400, "one JSON object"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "must be JSON"),
        (b"{}", {"Content-Length": "10000000"}, 413, "may have"),
        (b"{}", {"Content-Length": "-1"}, 413, "may have"),
        (b'{"options": {"loops": NaN}}', {}, 400, "loops"),
        (b'{"options": {"loops": 1e400}}', {}, 400, "loops"),
        (b'{"options": {"reset": [77]}}', {}, 400, "position 77"),
        (b'{"options": {"prompt": 9999999999999999999999}}', {}, 400, "prompt"),
        (b'{"corruption": "nope"}', {}, 400, "corruption"),
    ],
)
def test_a_bad_request_gets_one_line(server, body, headers, status, match, capsys):
    found, answer = request(server, path="effects" if b"corruption" in body else "view", body=body, **headers)
    assert found == status
    assert list(answer) == ["error"]
    assert re.search(match, answer["error"])
    assert "\n" not in answer["error"]
    assert "Traceback" not in capsys.readouterr().err
    assert request(server)[0] == 200, "and the server goes on"


def test_an_unexpected_fault_is_a_line_too(server, exploration, monkeypatch, capsys):
    monkeypatch.setattr(exploration, "view", lambda tree: 1 / 0)
    status, answer = request(server)
    assert (status, answer) == (500, {"error": "unexpected ZeroDivisionError: division by zero"})
    assert capsys.readouterr().err == "loopprobe explore: unexpected ZeroDivisionError: division by zero\n"


def test_runs_do_not_mix(server, exploration):
    """Several requests at once, with other hooks each, answer as one after the other."""
    asked = [{"options": {"heads": [[i % 2, i // 2 % 2]], "reset": [i]}} for i in range(4)] * 2
    right = [exploration.view(tree)["arrays"]["error"] for tree in asked[:4]] * 2
    found = [None] * len(asked)

    def ask(i):
        found[i] = request(server, body=json.dumps(asked[i]).encode())[1]["arrays"]["error"]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == right


def test_a_taken_port_gets_one_line(server, exploration):
    with pytest.raises(LoopprobeError, match=f"port {server.server_port} cannot be used"):
        ExplorerServer(exploration, server.server_port)


@contextlib.contextmanager
def explorer(*arguments):
    """A running ``loopprobe explore``, and its address."""
    command = [sys.executable, "-m", "loopprobe", "explore", *map(str, arguments), "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, re.search(r"http://\S+", process.stdout.readline())[0]
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True])
def test_ctrl_c_ends_it_within_two_seconds(tiny, busy):
    with explorer(tiny, "--prompts", 8) as (process, url):
        if busy:
            _, _, address, token, _ = url.split("/")
            connection = http.client.HTTPConnection(address, timeout=60)
            body = json.dumps({"options": {"loops": 2000}}).encode()
            connection.request("POST", f"/{token}/effects", body, {"Host": address, "Content-Type": "application/json"})
            time.sleep(1)
            connection.close()  # the run goes on, though nobody waits for it
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert time.monotonic() - started < 2
        assert process.stdout.read() == "ended\n"


# In a browser


READY = "#error .xtick"
DRAWN = (
    "id => document.getElementById(id).data.map(t => [t.name, Array.from(t.y ?? []).filter(y => y !== null).length])"
)
SCALE = "() => (({zmin, zmax, z}) => [zmin, zmax, z])(document.getElementById('pattern').data[0])"
LINE = "name => document.getElementById('error').data.find(t => t.name === name)?.y"


def everything_is_drawn(page):
    for name in ("error", "path"):
        drawn = page.evaluate(DRAWN, name)
        assert drawn
        assert all(count > 0 for _, count in drawn), name
    assert page.evaluate("() => document.getElementById('pattern').data[0].z.flat().every(Number.isFinite)")
    tops = page.evaluate("() => new Set([...document.querySelectorAll('#heads canvas')].map(c => c.offsetTop)).size")
    assert tops <= page.evaluate("() => pairs().length"), "the loops of a head stand side by side"
    pictures = page.locator("#heads canvas")
    assert pictures.count() > 0
    inked = "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size > 3"
    assert pictures.first.evaluate(inked)
    assert page.locator("#lens tbody td").count() > 0
    assert page.locator("#tokens button").count() > 0
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), "nothing is cut at the side"


@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 500])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_saved_page_works_offline(checkpoint, tmp_path, width, scheme):
    path = loopprobe.explore(checkpoint, 4, shown=2).save(tmp_path / "page.html")
    with browsing(path.as_uri(), width, scheme, ready=READY) as (page, heard, asked):
        everything_is_drawn(page)
        paper = page.evaluate("() => document.getElementById('error').layout.paper_bgcolor")
        assert (paper == "#14171b") == (scheme == "dark")
        before = page.evaluate("() => document.getElementById('path').data[1].x")
        page.locator("#loop").fill("2")
        assert page.inner_text("#loop-told") == "2"
        assert page.evaluate("() => document.getElementById('path').data[1].x") != before
        assert page.locator("#lens tr.now th").inner_text() == "2"
        page.select_option("#prompt", "1")
        assert page.evaluate("() => view.prompt") == 1
        page.locator("#heads canvas").nth(4).click()  # head 0.1, loop 1
        assert (page.input_value("#head"), page.inner_text("#loop-told")) == ("1", "1")
        page.locator("#lens tbody tr").nth(3).locator("td").nth(1).click()  # x2 after 3 loops
        assert (page.inner_text("#tokens button.focus"), page.inner_text("#loop-told")) == ("x2", "3")
        page.click("#play")
        page.wait_for_function("() => document.getElementById('loop-told').textContent === '4'")
        assert not page.is_visible("#ask .live"), "what needs a server is not there"
    assert heard == []
    assert asked == [path.as_uri()]


@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 500])
def test_a_click_masks_a_token_and_the_error_changes(server, exploration, width):
    with browsing(server.url, width, ready=READY) as (page, heard, asked):
        everything_is_drawn(page)
        clean = page.evaluate(LINE, "clean, this prompt")
        page.click("#tokens button[data-token='3']")
        page.wait_for_function("() => view.runs.length === 2")
        changed = page.evaluate(LINE, "changed, this prompt")
        by_hand = unpacked(exploration.view({"options": {"reset": [3]}})["arrays"]["error"])[1, :, 0]
        np.testing.assert_allclose(changed, by_hand, rtol=1e-5)
        assert changed[1:] != clean[1:]
        assert "reset" in page.locator("#tokens button[data-token='3']").get_attribute("class")
        assert "the state of token 3 reset" in page.inner_text("#told")
        page.select_option("#pattern-run", "difference")
        scales, largest = [], 0.0
        for loop in ("1", "2", "3", "4"):
            page.locator("#loop").fill(loop)
            assert page.inner_text("#loop-told") == loop
            trace = page.evaluate(SCALE)
            scales.append(trace[:2])
            largest = max(largest, np.abs(trace[2]).max())
        assert scales == [scales[0]] * 4, "a colour means the same after every loop"
        np.testing.assert_allclose(scales[0], [-max(largest, 0.01), max(largest, 0.01)], rtol=1e-5)
        page.click("#heads button[data-head='1.0']")
        page.wait_for_function("() => view.told.includes('head 1.0 off')")
        page.locator("#loop").fill("2")
        page.select_option("#where", "this")
        page.wait_for_function("() => view.told.includes('in loop 2,')")
        page.click("#clear")
        page.wait_for_function("() => view.runs.length === 1")
        np.testing.assert_allclose(page.evaluate(LINE, "clean, this prompt"), clean)
        page.click("#measure-effects")
        page.wait_for_selector("#effects .xtick", state="attached")
        page.evaluate("() => document.getElementById('effects').emit('plotly_click', {points: [{x: 2, y: 3}]})")
        assert page.evaluate("() => [state.focus, view.loops[state.loop]]") == [2, 3]
    assert heard == []
    assert all(url.startswith(server.url) or url.startswith(("data:", "blob:")) for url in asked)


@pytest.mark.browser
def test_a_bad_request_is_a_line_on_the_page(server):
    with browsing(server.url, 1400, ready=READY) as (page, heard, _):
        page.fill("#loops", "9999")
        page.click("button[type=submit]")
        page.wait_for_selector("#told.wrong")
        assert page.inner_text("#told") == "loops (9,999) must be at most 2,000 on a page: lower it"
        page.fill("#loops", "3")
        page.click("button[type=submit]")
        page.wait_for_function("() => view.loops.length === 3")
        assert not page.locator("#told.wrong").count()
        everything_is_drawn(page)
    assert all("400" in line for line in heard), "the browser tells of the refused request and of nothing else"


@pytest.mark.browser
def test_a_text_is_typed_and_read():
    with browsing_language_model() as (page, heard):
        everything_is_drawn(page)
        page.fill("#text", "Returns the mean of the array. Returns the mean of the")
        page.click("button[type=submit]")
        page.wait_for_function("() => view.tokens[0] === \"'Returns'\"")
        assert page.locator("#lens tbody tr").count() == 1 + 6  # the right answers, and every loop
        assert "' Returns'" in page.inner_text("#tokens")
        page.select_option("#measure", "probability")
        low, high = page.evaluate(
            "() => { const y = document.getElementById('error').data[0].y; return [Math.min(...y), Math.max(...y)]; }"
        )
        assert 0 <= low <= high <= 1
        page.check("[name=click][value=hide]")
        page.click("#tokens button[data-token='2']")
        page.wait_for_function("() => view.told.includes('token 2 hidden from attention')")
    assert heard == []


@contextlib.contextmanager
def browsing_language_model():
    exploration = loopprobe.explore("hf:raven-docs", trust_remote_code=True)
    running = ExplorerServer(exploration)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        with browsing(running.url, 1400, ready=READY) as (page, heard, _):
            yield page, heard
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def test_the_templates_are_in_the_wheel():
    """They lie in the package, which hatch takes as a whole."""
    folder = Path(loopprobe.__file__).parent / "show" / "templates"
    pages = {"explore.html", "explore.js", "explore.css", "page.css", "theme.js", "table.html", "datasets.html"}
    assert pages | {"figure.html", "head.html", "meta.html", "narrow.js"} <= {path.name for path in folder.iterdir()}
