#!/usr/bin/env python3
"""The chat page of `qw serve` in headless chromium.

    page.py --qw build/qw --model tests/fixtures/tiny-q4km.gguf [--screenshots FOLDER]

A gate between browser and service holds back a stream after a number of events, so that what the page does in the
middle of an answer can be looked at however fast the model is. Needs chromium, chromedriver and the packages
selenium, gguf and numpy. Prints one line per failure and `N passed, M failed`.
"""
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import threading

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "clients"))
import script_model  # noqa: E402
from service import TIMEOUT_S, Service, Suite, arguments  # noqa: E402

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
         "--no-default-browser-check", "--window-size=900,800"]
THOUGHT = "Somebody says hello. <b>Politely</b>."
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def end(sock):
    """Closes a connection also when another thread waits in recv(), where close() alone would say nothing."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    sock.close()


class Gate:
    """Passes bytes between browser and service. When closed it lets a number of events of a stream pass and holds
    the rest back until it is opened or the browser leaves."""

    def __init__(self, port):
        self.to_port, self.limit, self.bodies = port, None, []
        self.left = threading.Event()  # the browser left a stream that was held back
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.accepting = True
        threading.Thread(target=self.accept, daemon=True).start()

    def close_at(self, n_events):
        self.left.clear()
        self.limit = n_events

    def open(self):
        self.limit = None

    def accept(self):
        while True:
            try:
                browser, _ = self.listener.accept()
            except OSError:
                return
            if not self.accepting:
                browser.close()
                continue
            service, gone = socket.create_connection(("127.0.0.1", self.to_port)), threading.Event()
            threading.Thread(target=self.up, args=(browser, service, gone), daemon=True).start()
            threading.Thread(target=self.down, args=(service, browser, gone), daemon=True).start()

    def up(self, browser, service, gone):
        """Requests; remembers the bodies of chats."""
        data = b""
        try:
            while piece := browser.recv(65536):
                service.sendall(piece)
                data += piece
                head, found, body = data.partition(b"\r\n\r\n")
                length = next((int(line[15:]) for line in head.split(b"\r\n")
                               if line.lower().startswith(b"content-length:")), 0)
                if found and len(body) >= length:
                    if length:
                        self.bodies.append(json.loads(body[:length]))
                    data = body[length:]
        except OSError:
            pass
        gone.set()
        end(service)

    def down(self, service, browser, gone):
        """Replies; each part that begins with "data: " is an event of a stream."""
        try:
            while piece := service.recv(65536):
                for part in re.split(rb"(?=data: )", piece):
                    if part.startswith(b"data: ") and self.limit is not None:
                        self.hold(gone)
                    browser.sendall(part)
        except OSError:
            pass
        end(browser)

    def hold(self, gone):
        while self.limit == 0:
            if gone.wait(0.01):
                self.left.set()
                return
        if self.limit is not None:
            self.limit -= 1


class Page:
    def __init__(self, browser, gate, model, folder):
        self.browser, self.gate, self.model, self.folder = browser, gate, model, folder
        self.url = f"http://127.0.0.1:{gate.port}/"

    def find(self, css):
        return self.browser.find_element(By.CSS_SELECTOR, css)

    def all(self, css):
        return self.browser.find_elements(By.CSS_SELECTOR, css)

    def wait(self, condition, what):
        return WebDriverWait(self.browser, TIMEOUT_S, 0.05).until(lambda _: condition(), what)

    def say(self, text):
        self.find("#input").send_keys(text + Keys.ENTER)

    def idle(self):
        return self.find("#send").is_displayed() and not self.find("#stop").is_displayed()

    def finish(self):
        """Until the answer is complete; its text."""
        self.wait(self.idle, "the answer ends")
        return self.all("article.assistant .body")[-1].text

    def shot(self, name):
        if self.folder:
            self.browser.save_screenshot(os.path.join(self.folder, name + ".png"))

    def logged(self):
        return [entry for entry in self.browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def test_load(s, p):
    p.browser.get(p.url)
    p.wait(lambda: p.find("#model").text == p.model, "the model's name")
    s.check(p.find("#hint").is_displayed() and p.idle(), "an empty page")
    s.equal(p.browser.switch_to.active_element.get_attribute("id"), "input", "the input has the focus")
    unnamed = p.browser.execute_script(
        "return [...document.querySelectorAll('button, textarea, summary, main')]"
        ".filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).map(e => e.id)")
    s.equal(unnamed, [], "every control has a name")
    p.shot("empty")


def test_answer(s, p):
    p.find("#input").send_keys("two" + Keys.SHIFT + Keys.ENTER + Keys.NULL + "lines")
    s.equal((p.find("#input").get_attribute("value"), p.all("article")), ("two\nlines", []), "Shift+Enter")
    p.find("#input").send_keys(Keys.ENTER)
    p.wait(lambda: len(p.all("article")) == 2, "two messages")
    s.equal(p.all("article.user .body")[-1].text, "two\nlines", "the question is shown")
    s.equal(p.find("#input").get_attribute("value"), "", "the input is empty again")
    p.finish()
    s.equal(p.gate.bodies[-1]["messages"], [{"role": "user", "content": "two\nlines"}], "what was sent")
    s.equal(p.all(".error"), [], "no error")


def some_answer(p):
    """A complete answer with text in it. A random model may end at once: then again."""
    for _ in range(10):
        p.find("#new").click()
        p.say("Write something.")
        if text := p.finish():
            return text
    raise AssertionError("ten empty answers")


def test_conversation(s, p):
    answer = some_answer(p)
    p.find("#settings summary").click()
    p.find("#system").send_keys("Be brief.")
    p.find("#settings summary").click()
    p.say("And now?")
    p.wait(lambda: len(p.all("article")) == 4, "four messages")
    p.finish()
    sent = p.gate.bodies[-1]["messages"]
    s.equal([m["role"] for m in sent], ["system", "user", "assistant", "user"], "roles of the second request")
    s.equal((sent[0]["content"], sent[1]["content"], sent[3]["content"]), ("Be brief.", "Write something.", "And now?"),
            "texts of the second request")
    s.check(sent[2]["content"].split() != [] and sent[2]["content"].split()[0][:1] == answer.split()[0][:1],
            "the answer is part of it", (sent[2], answer))
    p.browser.execute_script("document.getElementById('system').value = ''")


def test_streaming_and_stop(s, p):
    for _ in range(10):
        p.find("#new").click()
        p.gate.close_at(3)  # the role and two pieces of text
        p.say("Write more.")
        p.wait(lambda: p.idle() or p.all("article.assistant .body")[-1].text != "", "the first text")
        if not p.idle():
            break
        p.gate.open()
    text = p.all("article.assistant .body")[-1].text
    s.check(text != "" and not p.idle() and p.find("article.waiting"), "text is shown while the answer runs", text)
    s.check(p.find("#stop").is_displayed() and not p.find("#send").is_displayed(), "Stop stands in Send's place")
    p.shot("streaming")
    p.say("typed too early")
    s.equal(len(p.all("article")), 2, "nothing is sent while an answer runs")
    p.find("#input").clear()
    p.find("#stop").click()
    p.wait(p.idle, "stopped")
    s.check(p.gate.left.wait(TIMEOUT_S), "the connection is closed, so the service stops as well")
    s.check(p.find("article.assistant .note").text == "Stopped." and
            p.all("article.assistant .body")[-1].text == text, "what was there stays", p.find("article.assistant").text)
    p.gate.open()
    p.say("Go on.")
    p.wait(lambda: len(p.all("article")) == 4, "the conversation goes on")
    p.finish()
    s.equal([m["role"] for m in p.gate.bodies[-1]["messages"]], ["user", "assistant", "user"], "with what was said")


def test_new_chat_while_running(s, p):
    p.gate.close_at(1)
    p.say("Write much.")
    p.wait(lambda: p.find("#stop").is_displayed(), "running")
    p.find("#new").click()
    s.check(p.idle() and p.all("article") == [] and p.find("#hint").is_displayed(), "New chat empties the page")
    p.gate.open()
    p.say("Again.")
    p.wait(lambda: len(p.all("article")) == 2, "two messages")
    p.finish()
    s.equal(len(p.gate.bodies[-1]["messages"]), 1, "nothing of the old conversation is sent")
    s.equal(len(p.all("article")), 2, "nothing of the old answer appears")


def test_text_is_text(s, p):
    p.find("#new").click()
    p.browser.execute_script("document.getElementById('input').value = arguments[0]",
                             HOSTILE + "\n```c\nint x = 1 < 2;\n```\nafter")
    p.find("#input").send_keys(Keys.ENTER)
    p.wait(lambda: len(p.all("article")) == 2, "two messages")
    p.finish()
    body = p.find("article.user .body")
    texts = [e.text for e in body.find_elements(By.CSS_SELECTOR, "p.text")]
    s.equal(texts, [HOSTILE, "after"], "markup is shown as text")
    s.equal((body.find_element(By.CSS_SELECTOR, "figure code").text, body.find_element(By.CSS_SELECTOR,
            "figcaption span").text), ("int x = 1 < 2;", "c"), "a code block")
    s.check("mono" in body.find_element(By.CSS_SELECTOR, "code").value_of_css_property("font-family").lower(),
            "code is monospaced")
    s.equal((p.browser.title, p.all("article img"), p.all("article script")), ("qw", [], []), "no markup got through")
    p.shot("text")


def test_looks(s, p):
    for name, width, scheme in (("phone", 360, "light"), ("phone-dark", 360, "dark"), ("desktop-dark", 1200, "dark")):
        p.browser.execute_cdp_cmd("Emulation.setEmulatedMedia",
                                  {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        p.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                  {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": width < 500})
        wide = p.browser.execute_script("return document.documentElement.scrollWidth")
        s.check(wide <= width, f"{name}: nothing sticks out", wide)
        box = p.find("#send").rect
        s.check(box["x"] + box["width"] <= width and box["y"] + box["height"] <= 700, f"{name}: Send is reachable", box)
        colour = p.browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        dark = int(colour.split("(")[1].split(",")[0]) < 128
        s.equal(dark, scheme == "dark", f"{name}: colours follow the system")
        p.shot(name)
    p.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_thinking(s, p):
    p.browser.get(p.url)
    p.gate.close_at(3)  # the role and two pieces of the thinking
    p.say("Hello")
    p.wait(lambda: p.all("details.thinking p") and p.find("details.thinking p").text != "", "the first thought")
    s.check(p.find("details.thinking").get_attribute("open") and p.find("article.assistant .body").text == "",
            "thinking is shown while there is no answer")
    p.gate.open()
    s.equal(p.finish(), "Here I am.", "the answer stands apart")
    box = p.find("details.thinking")
    s.check(not box.get_attribute("open"), "its thinking folds up")
    box.find_element(By.CSS_SELECTOR, "summary").click()
    s.equal(box.find_element(By.CSS_SELECTOR, "p").text, THOUGHT, "and can be opened")
    p.shot("thinking")
    p.say("And now?")
    p.wait(lambda: len(p.all("article")) == 4, "four messages")
    p.finish()
    s.equal(p.gate.bodies[-1]["messages"][1], {"role": "assistant", "content": "Here I am.", "reasoning_content": THOUGHT},
            "it goes back as a field of its own")


def on_thinking_model(s, browser, args, folder):
    path = os.path.join(folder, "thinking.gguf")
    script_model.write(path, "qwen3", f"<think>\n{THOUGHT}\n</think>\n\nHere I am.", "Not asked.")
    service = Service(args.qw, path)
    gate = Gate(service.port)
    s.run(test_thinking, Page(browser, gate, "thinking", args.screenshots))
    service.stop()
    gate.listener.close()


def test_errors_shown(s, p, service):
    s.equal(p.logged(), [], "nothing in the browser's console so far")
    p.find("#new").click()
    p.browser.execute_script("document.getElementById('input').value = 'word '.repeat(40000)")
    p.find("#input").send_keys(Keys.ENTER)
    p.wait(lambda: p.all("article.assistant .error"), "an error")
    s.check("context" in p.find(".error").text and p.find(".error").get_attribute("role") == "alert",
            "a prompt that does not fit: the service's own words", p.find(".error").text)
    p.find("#new").click()
    p.find("#input").clear()
    p.gate.close_at(2)
    p.say("Write something.")
    p.wait(lambda: p.find("#stop").is_displayed(), "running")
    p.gate.accepting = False
    service.process.kill()
    service.process.wait()
    p.gate.open()
    p.wait(p.idle, "the end")
    p.find("#new").click()
    p.find("#input").clear()
    p.say("Anyone?")
    p.wait(lambda: p.all("article.assistant .error"), "an error")
    s.equal(p.find(".error").text, "The service cannot be reached.", "a service that is gone")
    s.equal(p.find("#input").get_attribute("value"), "Anyone?", "the question is not lost")
    p.shot("error")


def open_browser(profile):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or sys.exit("page.py: chromium is not installed")
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = shutil.which("chromedriver") or sys.exit("page.py: chromedriver is not installed")
    return webdriver.Chrome(options, webdriver.ChromeService(driver))


def main():
    args = arguments(__doc__, ("--screenshots", {"metavar": "FOLDER", "help": "keep pictures of the page there"}))
    s = Suite()
    service = Service(args.qw, args.model, "-c", "4096")
    gate = Gate(service.port)
    with tempfile.TemporaryDirectory(prefix="qw-page-", ignore_cleanup_errors=True) as profile:
        browser = open_browser(profile)
        page = Page(browser, gate, os.path.basename(args.model).removesuffix(".gguf"), args.screenshots)
        try:
            for test in (test_load, test_answer, test_conversation, test_streaming_and_stop,
                         test_new_chat_while_running, test_text_is_text, test_looks):
                s.run(test, page)
            on_thinking_model(s, browser, args, profile)
            page.browser.get(page.url)
            s.run(test_errors_shown, page, service)
        finally:
            browser.quit()
    service.stop()
    gate.listener.close()
    return s.finish()


if __name__ == "__main__":
    sys.exit(main())
