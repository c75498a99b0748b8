"""Conversations that the browser keeps: those of an older version of the page, read when they are opened, exported, deleted."""

import json
import os
import shutil

from playwright.sync_api import sync_playwright

URL = os.environ["MOI_URL"]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
SETTINGS = {"rules": ["token"], "system": "", "fields": {}, "trace": True, "seed": 1}
# How the first version kept them: without titles beside.
OLDER = """(conversations) => new Promise((resolve, reject) => {
  const request = indexedDB.open("moi", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" });
  request.onerror = () => reject(request.error);
  request.onsuccess = () => {
    const transaction = request.result.transaction("conversations", "readwrite");
    conversations.forEach((one) => transaction.objectStore("conversations").put(one));
    transaction.oncomplete = () => { request.result.close(); resolve(); };
  };
})"""
READS = """() => {
  window.reads = 0;
  for (const name of ["get", "getAll", "openCursor"]) {
    const own = IDBObjectStore.prototype[name];
    IDBObjectStore.prototype[name] = function (...all) {
      if (this.name === "conversations" && this.transaction.mode === "readonly") window.reads += 1;
      return own.apply(this, all);
    };
  }
}"""


def conversation(at):
    step = {"token": 1, "piece": "yes", "text": "yes", "logprob": -1, "entropy": 1, "gate": 0.5, "top": [], "likeliest": []}
    run = {"spec": "token", "rule": {"support": "full"}, "text": f"answer {at}", "thoughts": "", "ids": [1], "steps": [step],
           "stop_reason": "eos", "mean_entropy": 0, "mean_gate": 0, "parts_at": None, "agreement": None}
    nodes = {
        "u": {"id": "u", "parent": None, "role": "user", "text": f"question {at}", "children": ["a"], "chosen": "a"},
        "a": {"id": "a", "parent": "u", "role": "assistant", "runs": [run], "request": SETTINGS, "done": True,
              "children": [], "chosen": None, "asText": True}}
    return {"id": f"c{at}", "title": f"title {at}", "updated": 1000 + at, "settings": SETTINGS, "nodes": nodes,
            "root": {"children": ["u"], "chosen": "u"}}


def listed(page):
    return [text for text in page.locator("#conversations li button:first-child").all_inner_texts()]


def act(page, what, title):
    """Does something with an entry of the list: what can be done is shown where the pointer is."""
    page.get_by_role("button", name=title, exact=True).hover()
    page.get_by_label(f"{what} {title}", exact=True).click()


def shows(page, at):
    page.wait_for_function("text => document.querySelector('#thread').innerText.includes(text)", arg=f"answer {at}")


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
    page = browser.new_page()
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: dialog.accept("another title") if dialog.type == "prompt" else dialog.accept())
    page.goto(URL + "/version")
    page.evaluate(OLDER, [conversation(at) for at in range(30)])
    page.add_init_script(f"({READS})()")
    page.goto(URL)
    shows(page, 29)
    assert listed(page) == [f"title {at}" for at in reversed(range(30))]
    page.reload()
    shows(page, 29)
    # The one that is shown is read, and none beside it.
    assert page.evaluate("window.reads") == 1, page.evaluate("window.reads")
    page.get_by_role("button", name="title 7", exact=True).click()
    shows(page, 7)
    # Others can be renamed, exported and deleted that nobody has opened.
    act(page, "Rename", "title 12")
    page.get_by_role("button", name="another title", exact=True).wait_for()
    with page.expect_download() as download:
        act(page, "Export", "title 20")
    text = json.load(open(download.value.path()))
    assert [c["title"] for c in text["conversations"]] == ["title 20"] and text["conversations"][0]["nodes"]
    act(page, "Delete", "title 3")
    page.wait_for_function("() => document.querySelectorAll('#conversations li').length === 29")
    page.wait_for_timeout(900)
    page.reload()
    page.wait_for_function("() => document.querySelectorAll('#conversations li').length === 29")
    titles = listed(page)
    assert "title 3" not in titles and titles[0] == "another title", titles
    shows(page, 12)
    with page.expect_download() as download:
        page.click("#export")
    kept = json.load(open(download.value.path()))["conversations"]
    assert len(kept) == 29 and all(c["nodes"] for c in kept)
    # A new one is shown, and the one before is still there: what is asked in it then is kept.
    page.click("#new")
    page.wait_for_selector(".empty")
    page.wait_for_timeout(900)
    for title in ("title 7", "title 9", "title 7"):
        page.get_by_role("button", name=title, exact=True).click()
        shows(page, title.split()[1])
    assert page.locator("#conversations li.current button").first.inner_text() == "title 7"
    page.fill("#input", "Once more?")
    page.press("#input", "Enter")
    page.wait_for_function("() => document.querySelector('#said').textContent.startsWith('The answer is complete')", timeout=60000)
    page.reload()
    shows(page, 7)
    assert "Once more?" in page.inner_text("#thread")
    assert not faults, faults
    version = browser.version
    browser.close()
print(f"Chromium {version}: 30 conversations of an older page, each read when it is opened; renamed, exported, deleted")
