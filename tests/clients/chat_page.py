"""The chat page in headless Chromium: ask, stop, edit, branch, compare, fork, reload, a lost connection, export, hostile
text, a long trace, keyboard, axe. With MOI_SCREENSHOTS=DIR pictures of it are left there."""

import http.server
import json
import os
import re
import shutil
import socket
import statistics
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

URL = os.environ["MOI_URL"]
SHORT = "MOI_SHORT" in os.environ
PICTURES = os.environ.get("MOI_SCREENSHOTS")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))


def api(path, body):
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))


class Proxy:
    """Passes bytes on, and breaks its connections when it is told to."""

    def __init__(self):
        self.to = tuple(URL.removeprefix("http://").split(":"))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.open = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            ours, _ = self.listener.accept()
            theirs = socket.create_connection((self.to[0], int(self.to[1])))
            self.open += [ours, theirs]
            for a, b in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self.copy, args=(a, b), daemon=True).start()

    def copy(self, a, b):
        try:
            while data := a.recv(65536):
                b.sendall(data)
        except OSError:
            pass
        for end in (a, b):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self):
        for end in self.open:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self.open.clear()


def opened(browser, **options):
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], **options)
    page = context.new_page()
    page.set_default_timeout(60000)
    page.faults, page.elsewhere = [], []
    page.on("console", lambda m: page.faults.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: page.faults.append(str(e)))
    page.on("request", lambda r: page.elsewhere.append(r.url) if not r.url.startswith(("http://127.0.0.1", "blob:", "data:")) else None)
    page.on("dialog", lambda d: d.accept())
    return page


def settings(page, rules=None, **fields):
    page.click("#settings-open")
    for label, value in fields.items():
        page.get_by_label(label.replace("_", " "), exact=True).fill(str(value))
    for at, rule in enumerate(rules or []):
        if at and page.locator("select").count() <= at:
            page.click("text=Compare with another rule")
        page.locator("select").nth(at).select_option(rule)
    page.get_by_label("Close the settings").click()


def ask(page, text, wait=True):
    page.fill("#input", text)
    page.press("#input", "Enter")
    if wait:
        done(page)


def done(page):
    page.wait_for_selector("#send[data-running=false]")


def running(page):
    return page.get_attribute("#send", "data-running") == "true"


def until(page, is_so):
    deadline = time.time() + 60
    while not is_so():
        assert time.time() < deadline, "it does not come to be so"
        page.wait_for_timeout(50)


def tokens(page, at=-1):
    return page.locator("article.assistant").nth(at).locator(".text").first.inner_text()


def chats(page):
    page.goto(page.url_of)
    page.wait_for_selector(".empty")
    settings(page, ["moi"], Temperature=0, Tokens_at_most=40, Seed=7)
    ask(page, "Why is the sky blue?")
    text = tokens(page)
    told = api("/v1/chat/completions", {
        "messages": [{"role": "user", "content": "Why is the sky blue?"}], "temperature": 0, "max_tokens": 40, "seed": 7,
        "moi": {"rule": "moi"}})["choices"][0]["message"]["content"]
    assert text.strip() == told.strip(), (text, told)
    assert page.locator("article.assistant .token").count() == 40
    # What was fed next, at a click and by keys.
    page.locator(".token").nth(5).click()
    first = page.text_content("#detail")
    assert "step 5 of 40" in first and "Fed next" in first and "Distribution" in first, first
    page.keyboard.press("ArrowRight")
    assert "step 6 of 40" in page.inner_text("#detail")
    assert page.locator(".token[aria-selected=true]").count() == 1
    # A fork: the same tokens up to here, then another.
    taken = page.locator("#detail .take").first
    other = taken.locator("xpath=..").get_attribute("title").removeprefix("token ")
    taken.click()
    done(page)
    assert page.inner_text("article.assistant .branches").split() == ["‹", "2/2", "›"]
    forked = tokens(page)
    ids = [c["token_ids"] for c in api("/v1/chat/completions", {
        "messages": [{"role": "user", "content": "Why is the sky blue?"}], "temperature": 0, "max_tokens": 40, "seed": 7,
        "moi": {"rule": "moi"}, "return_token_ids": True})["choices"]][0]
    exact = api("/v1/chat/completions", {
        "messages": [{"role": "user", "content": "Why is the sky blue?"}], "temperature": 0, "max_tokens": 40, "seed": 7,
        "moi": {"rule": "moi", "force": ids[:6] + [int(other)]}})["choices"][0]["message"]["content"]
    assert forked.strip() == exact.strip() and forked != text, (forked, exact)
    page.click("article.assistant [aria-label='Earlier branch']")
    assert tokens(page) == text
    # Text in the place of tokens, and what follows.
    page.click("article.assistant [aria-label='Show text']")
    assert page.locator("article.assistant .markdown").is_visible()
    ask(page, "Go on.")
    assert page.locator("article.assistant").count() == 2
    # An edited question is a branch.
    page.locator("article.user button:has-text('Edit')").first.click()
    page.locator("article.user textarea").fill("Why is grass green?")
    page.press("article.user textarea", "Enter")
    done(page)
    assert page.inner_text("article.user .branches").split() == ["‹", "2/2", "›"]
    assert page.locator("article.assistant").count() == 1
    page.click("article.assistant [aria-label='Answer again']")
    done(page)
    assert "2/2" in page.inner_text("article.assistant .branches")
    # All of it is there after a reload.
    before = page.inner_text("#thread")
    page.reload()
    page.wait_for_selector("article.assistant")
    assert page.inner_text("#thread") == before


def stops(page):
    page.click("#new")
    settings(page, ["token"], Temperature=1, Tokens_at_most=2000)
    ask(page, "Tell a very long story.", wait=False)
    page.wait_for_selector(".token:nth-child(10)")
    page.click("#send")
    done(page)
    count = page.locator(".token").count()
    assert 10 <= count < 2000 and "stopped" in page.inner_text("article.assistant .figures")
    deadline = time.time() + 20
    while "vllm:num_requests_running{" not in (m := urllib.request.urlopen(URL + "/metrics").read().decode()) or \
            float(re.search(r"^vllm:num_requests_running\{.*?\} (\S+)$", m, re.M)[1]) > 0:
        assert time.time() < deadline, "the server still runs it"
        time.sleep(0.1)


def compares(page):
    page.click("#new")
    settings(page, ["token", "moi", "soft-thinking"], Temperature=0, Tokens_at_most=30, Seed=1)
    ask(page, "What is a fox?")
    assert page.locator(".columns .run").count() == 3
    specs = page.locator(".pick span").all_inner_texts()
    assert [spec.split(":")[0] for spec in specs] == ["token", "moi", "soft-thinking"], specs
    figures = page.locator(".columns .figures").all_inner_texts()
    assert "parts at token" in figures[2] or "same as the first" in figures[2], figures
    if "parts at token" in figures[2]:
        at = int(figures[2].split("parts at token ")[1].split()[0])
        marked = page.locator(".columns .run").nth(2).locator(".token")
        assert "parts" in marked.nth(at).get_attribute("class")
    # The chat goes on with the one that is picked.
    page.locator(".pick input").nth(1).check()
    return page


def survives(page, proxy):
    page.click("#new")
    settings(page, ["moi"], Temperature=1, Tokens_at_most=240, Seed=3)
    page.click("#settings-open")
    while page.get_by_label("Remove rule 2").count():
        page.get_by_label("Remove rule 2").click()
    page.get_by_label("Close the settings").click()
    asked = {"messages": [{"role": "user", "content": "Describe a town."}], "max_tokens": 240, "temperature": 1,
             "seed": 3, "moi": {"rule": "moi"}}
    told = api("/v1/chat/completions", asked)["choices"][0]["message"]["content"].strip()
    # A connection that breaks.
    ask(page, "Describe a town.", wait=False)
    page.wait_for_selector(".token:nth-child(15)")
    assert running(page)
    proxy.cut()
    done(page)
    assert tokens(page).strip() == told
    # A page that is reloaded in the midst of an answer.
    page.click("article.assistant [aria-label='Answer again']")
    page.wait_for_selector(".token:nth-child(15)")
    page.wait_for_timeout(300)
    assert running(page)
    page.reload()
    page.wait_for_selector(".token")
    done(page)
    assert tokens(page).strip() == told


def moves(page, directory):
    # Export and import, and a run that is saved as a page of `moi trace`.
    with page.expect_download() as download:
        page.click("#export")
    file = Path(directory, "all.json")
    download.value.save_as(file)
    before = page.locator("#conversations li").count()
    page.set_input_files("#import", file)
    until(page, lambda: page.locator("#conversations li").count() == 2 * before)
    broken = Path(directory, "broken.json")
    broken.write_text(json.dumps({"moi": "conversations", "conversations": [{"title": "x", "nodes": {}, "root": {}}]}))
    page.set_input_files("#import", broken)
    until(page, lambda: "not imported" in page.text_content("#said"))
    with page.expect_download() as download:
        page.click("text=Save run")
    saved = Path(directory, "run.html")
    download.value.save_as(saved)
    other = page.context.new_page()
    other.goto(saved.as_uri())
    assert other.locator("section.run .token").count() > 10 and "Distribution" in other.text_content("#detail")
    other.close()


HOSTILE = """<img src=x onerror="document.title='taken'"> <script>document.title='taken'</script>
[a](javascript:document.title='taken') [b](https://example.com/x) ![c](https://example.com/i.png) \x1b[31mred
\u202ethgir | `<b>` | **<i>x</i>** ```
"""


def hostile(page, directory):
    """Text that would break a page which does not mind what is text, as an answer: in a file that is imported."""
    long = "x" * 100_000
    text = HOSTILE + "\n\n" + ">" * 5000 + "\n\n" + "**a " * 30000 + "\n\n| a | b |\n|---|---|\n| 1 | <u> |\n\n> q\n\n1. one\n2. two\n\n```html\n<b>\n```\n\n" + long
    step = {"token": 1, "piece": "<b>", "text": "<b>", "logprob": -1, "entropy": 1, "gate": 0.5,
            "top": [{"token": 1, "text": "<img onerror=1>", "weight": 1}], "likeliest": []}
    run = {"spec": "<i>moi</i>", "rule": {"support": "full"}, "text": text, "thoughts": "<b>", "ids": [1], "steps": [step],
           "stop_reason": "eos", "mean_entropy": 0, "mean_gate": 0, "parts_at": None, "agreement": None}
    request = {"rules": ["token"], "system": "", "fields": {}, "trace": True, "seed": 1}
    nodes = {
        "u": {"id": "u", "parent": None, "role": "user", "text": HOSTILE, "children": ["a"], "chosen": "a"},
        "a": {"id": "a", "parent": "u", "role": "assistant", "runs": [run], "request": request, "done": True,
              "children": [], "chosen": None, "asText": True}}
    conversation = {"id": "x", "title": HOSTILE, "updated": 9e15, "settings": request, "nodes": nodes,
                    "root": {"children": ["u"], "chosen": "u"}}
    file = Path(directory, "hostile.json")
    file.write_text(json.dumps({"moi": "conversations", "version": 1, "conversations": [conversation]}))
    page.set_input_files("#import", file)
    page.wait_for_selector("article.assistant table")
    assert page.locator("#thread img, #thread script, #thread b, #thread i, #thread u").count() == 0
    links = page.locator("article.assistant a").evaluate_all("all => all.map(a => [a.href, a.rel])")
    assert [href for href, _ in links] == ["https://example.com/x", "https://example.com/i.png"], links
    assert all("noopener" in rel for _, rel in links)
    page.click("article.assistant [aria-label='Show tokens']")
    page.locator(".token").first.click()
    assert "<img onerror=1>" in page.inner_text("#detail") and "taken" not in page.title()
    assert page.locator("article.assistant ol li").count() == 2 and page.locator("blockquote").count() >= 1
    page.keyboard.press("Escape")


def replay(count, per_second):
    """A server that is the real one but for answers: these are a real event again and again, so often and so fast."""
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True, "max_tokens": 2, "logprobs": True,
            "top_logprobs": 10, "return_token_ids": True, "moi": {"rule": "moi", "trace": 10}}
    request = urllib.request.Request(URL + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    lines = urllib.request.urlopen(request).read().decode().split("\n\n")
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    step = next(event for event in events if event["choices"][0].get("moi", {}).get("token") is not None)
    last = next(event for event in events if event["choices"][0]["finish_reason"])

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            try:
                answer = urllib.request.urlopen(URL + self.path)
            except urllib.error.HTTPError as error:
                answer = error
            data = answer.read()
            self.send_response(answer.status)
            for name in ("Content-Type", "Content-Security-Policy"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            begun = time.time()
            for at in range(count):
                own = step["choices"][0]["moi"]
                own["i"], own["entropy"], own["gate"] = at, (at * 37 % 101) / 30, (at * 53 % 97) / 97
                step["choices"][0]["delta"] = {"content": f" word{at}"}
                self.wfile.write(f"data: {json.dumps(step)}\n\n".encode())
                time.sleep(max(0, begun + (at + 1) / per_second - time.time()))
            self.wfile.write(f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n".encode())

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def long_trace(browser):
    """A trace of thousands of tokens: how often the page draws as they come, at the end as at the beginning."""
    count = 400 if SHORT else 4000
    page = opened(browser, viewport={"width": 1280, "height": 860})
    page.goto(replay(count, 200))
    page.wait_for_selector(".empty")
    page.evaluate("""() => {
      window.drawn = []; let last = performance.now();
      const tick = (now) => { window.drawn.push(now - last); last = now; requestAnimationFrame(tick); };
      requestAnimationFrame(tick);
    }""")
    ask(page, "Go.", wait=False)
    page.wait_for_selector(f".token:nth-child({count})")
    done(page)
    drawn = page.evaluate("window.drawn")
    heap = page.evaluate("performance.memory.usedJSHeapSize") / 1e6
    part = len(drawn) // 4
    median = [statistics.median(drawn[at * part:(at + 1) * part]) for at in range(4)]
    assert median[3] <= 3 * median[0] + 1, median
    assert heap < 150, heap
    assert page.locator(".token").count() == count and not page.faults, page.faults
    page.context.close()
    return f"{count} tokens at {1000 / statistics.median(drawn):.0f} frames/s, {1000 / median[3]:.0f} at the end, {heap:.0f} MB"


def asks_for_key(browser):
    """A server that wants a key: the page asks for it once, and keeps it."""
    page = opened(browser)

    def guard(route):
        if route.request.headers.get("authorization") == "Bearer secret":
            return route.continue_()
        error = {"message": "the key is wrong", "type": "invalid_request_error", "param": None, "code": "invalid_api_key"}
        return route.fulfill(status=401, json={"error": error})

    page.route("**/v1/**", guard)
    page.goto(URL)
    page.wait_for_selector("#key-dialog[open]")
    accessible(page, "key")
    page.fill("#key-input", "secret")
    page.click("#key-dialog button[value=save]")
    page.wait_for_selector(".empty")
    page.reload()
    page.wait_for_selector(".empty")
    page.context.close()


def accessible(page, what):
    found = Axe().run(page).response["violations"]
    serious = [(v["id"], v["nodes"][0]["html"][:200], v["nodes"][0]["failureSummary"]) for v in found if v["impact"] in ("serious", "critical")]
    assert not serious, (what, serious)


def picture(page, name):
    if PICTURES:
        page.screenshot(path=str(Path(PICTURES, name + ".png")))


def main():
    import tempfile

    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as directory:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        proxy = Proxy()
        page = opened(browser, viewport={"width": 1280, "height": 860})
        page.url_of = proxy.url
        chats(page)
        page.locator(".token").nth(4).click()
        picture(page, "chat-light")
        accessible(page, "chat")
        page.keyboard.press("Escape")
        stops(page)
        compares(page)
        accessible(page, "compare")
        page.emulate_media(color_scheme="dark")
        picture(page, "compare-dark")
        page.emulate_media(color_scheme="light")
        page.click("#settings-open")
        accessible(page, "settings")
        picture(page, "settings-light")
        page.keyboard.press("Escape")
        survives(page, proxy)
        moves(page, directory)
        hostile(page, directory)
        accessible(page, "hostile")
        page.emulate_media(color_scheme="dark")
        accessible(page, "dark")
        faults = [fault for fault in page.faults if "ERR_" not in fault]
        assert not faults, faults
        assert not page.elsewhere, page.elsewhere
        page.context.close()
        phone = opened(browser, viewport={"width": 390, "height": 780}, color_scheme="dark", is_mobile=True, has_touch=True)
        phone.goto(URL)
        phone.wait_for_selector(".empty")
        settings(phone, ["moi"], Temperature=0, Tokens_at_most=40)
        ask(phone, "Why is the sky blue?")
        phone.locator(".token").nth(4).click()
        picture(phone, "phone-dark")
        accessible(phone, "phone")
        assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the phone"
        assert not phone.faults, phone.faults
        asks_for_key(browser)
        fluency = long_trace(browser)
        version = browser.version
        browser.close()
    print(f"Chromium {version}: ask, stop, edit, branches, compare, fork, reload, lost connections, files, "
          f"hostile text, axe; {fluency}")


main()
