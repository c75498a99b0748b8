"""A page of another origin in Chromium: what is allowed works, errors can be read, and what is not allowed reaches nothing."""

import functools
import http.server
import importlib.metadata
import os
import re
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

from playwright.sync_api import sync_playwright

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
FETCH = """async ([url, key, stream, credentials]) => {
  const body = {messages: [{role: "user", content: "Count."}], max_tokens: 5, stream};
  const headers = {"Content-Type": "application/json", ...(key ? {Authorization: "Bearer " + key} : {})};
  try {
    const answer = await fetch(url + "/v1/chat/completions", {method: "POST", headers, body: JSON.stringify(body), credentials});
    return {status: answer.status, text: await answer.text()};
  } catch (error) {
    return {status: 0, text: String(error)};
  }
}"""


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def pages(directory):
    """The address of a site of its own."""
    handler = functools.partial(Silent, directory=directory)
    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{site.server_port}"


def serving(*flags):
    command = [os.environ["MOI_BINARY"], "serve", "--port", "0", "--rule", "token", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"ready: (\S+)", line):
            threading.Thread(target=lambda: [None for _ in process.stderr], daemon=True).start()
            return process, found[1]
    raise AssertionError(said)


with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
    Path(directory, "index.html").write_text("<!doctype html><title>elsewhere</title>")
    own, other = pages(directory), pages(directory)
    browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
    page = browser.new_page()

    def asked(site, url, key=None, stream=False, credentials="omit"):
        page.goto(site)
        return page.evaluate(FETCH, [url, key, stream, credentials])

    servers = []
    try:
        named, url = serving("--api-key", "k", "--cors-origin", own)
        servers.append(named)
        assert '"content"' in asked(own, url, "k")["text"]
        streamed = asked(own, url, "k", stream=True)
        assert streamed["status"] == 200 and streamed["text"].endswith("data: [DONE]\n\n"), streamed
        # Errors can be read: a preflight needs no key, and they have the headers as well.
        for key in ("wrong", None):
            refused = asked(own, url, key)
            assert refused["status"] == 401 and "invalid_api_key" in refused["text"], refused
        # A page of nobody's choosing learns nothing, with the right key neither.
        assert asked(other, url, "k")["status"] == 0

        everybody, url = serving("--api-key", "k", "--cors-origin", "*")
        servers.append(everybody)
        assert asked(other, url, "k")["status"] == 200
        assert asked(other, url, "k", credentials="include")["status"] == 0, "never for cookies of the browser"

        nobody, url = serving()
        servers.append(nobody)
        assert asked(own, url)["status"] == 0
    finally:
        for process in servers:
            process.kill()
    browser.close()
print(f"Chromium by playwright {importlib.metadata.version('playwright')}: pages of named, of all and of other origins")
