"""A page of `testudo run --dashboard` in headless Chromium, over the DevTools protocol's pipe: what is in it, what it asked for, and
what was blocked.

Told on standard input, a JSON object a line: first {"chromium": PATH, "link": URL, "root": BOOL}, then {"look": {}}, {"until": SCRIPT},
{"run": SCRIPT}, {"play": EVENTS} (loads the page again, for which these are all that the run sends), {"keys": [KEY, ...]}, {"size": [WIDTH, HEIGHT, SCHEME]}, {"shot": PATH}, {"trip": {}}. Answers each with one line.
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
import time

DEADLINE = 120

LOOK = """(() => {
  const count = (selector, what) => (document.querySelector(selector)?.getAttribute("d").match(what) ?? []).length;
  const rows = (selector) => [...document.querySelectorAll(selector)].map((row) => [...row.cells].map((cell) => cell.textContent));
  return {
    address: location.pathname + location.hash,
    cookies: document.cookie,
    title: document.title,
    state: document.querySelector("#state")?.textContent,
    banner: document.querySelector("#banner:not([hidden])")?.textContent ?? "",
    points: Object.fromEntries(["loss", "accuracy", "rate", "bytes"].map((name) => [name, count(`#chart-${name} .canvas path.line`, /[ML]/g)])),
    evaluations: document.querySelectorAll("#chart-accuracy .canvas .mark").length,
    nodes: rows("#nodes tbody tr"),
    bars: [...document.querySelectorAll("#timeline .bar")].map((bar) => bar.textContent),
    stages: document.querySelectorAll("#timeline .bar rect.stage").length,
    refusals: rows("#refusals tbody tr"),
    notices: [...document.querySelectorAll("#notices li")].map((item) => item.textContent),
    said: document.querySelector("#said")?.textContent ?? "",
    readout: document.querySelector("#chart-loss .readout")?.textContent ?? "",
    spoken: document.querySelector("#spoken")?.textContent ?? "",
    wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    blocked: window.blocked,
  };
})()"""

WATCH = """window.blocked = [];
addEventListener("securitypolicyviolation", (event) => window.blocked.push(`${event.violatedDirective} ${event.blockedURI}`));"""

TRIP = """new Promise((done) => {
  document.body.setAttribute("style", "color: red");
  const script = document.createElement("script");
  script.textContent = "window.tripped = true";
  document.head.append(script);
  const image = new Image();
  image.onerror = () => done({ tripped: window.tripped ?? false });
  image.src = "http://127.0.0.1:9/outside.png";
})"""


class Browser:
    def __init__(self, chromium, root, folder):
        (theirs, self.out), (self.into, theirs_too) = os.pipe(), os.pipe()
        command = [
            chromium, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={folder}", "--no-first-run",
            "--no-default-browser-check", "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-extensions", "--disable-gpu", "--disable-dev-shm-usage", "--metrics-recording-only", "--no-proxy-server",
            # Whatever it wanted of the network by itself, it would find nobody.
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ]  # fmt: skip
        # Chromium's sandbox is not for root.
        command += ["--no-sandbox"] if root else []

        def pipes():
            ends = [os.dup(theirs), os.dup(theirs_too)]
            ends = [os.dup2(os.dup(end), 100 + at) for at, end in enumerate(ends)]
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, preexec_fn=pipes, close_fds=False, **quiet)
        os.close(theirs)
        os.close(theirs_too)
        self.buffer, self.number, self.session = b"", 0, None
        self.requests, self.errors, self.paused = [], [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ["Page", "Runtime", "Network", "Log"]:
            self.call(f"{domain}.enable")
        self.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)

    def heard(self):
        while b"\0" not in self.buffer:
            more = os.read(self.into, 1 << 16)
            if not more:
                raise SystemExit("the browser has gone")
            self.buffer += more
        line, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(line)

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            heard = self.heard()
            if heard.get("id") == self.number:
                if "error" in heard:
                    raise SystemExit(f"{method}: {heard['error']}")
                return heard["result"]
            self.note(heard.get("method"), heard.get("params", {}))

    def note(self, method, parameters):
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Fetch.requestPaused":
            self.paused.append(parameters["requestId"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(parameters["exceptionDetails"])[:2000])
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")

    def evaluate(self, script):
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise SystemExit(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def until(self, script):
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            if self.evaluate(script):
                return True
            time.sleep(0.05)
        raise SystemExit(f"waited in vain for {script}: {json.dumps(self.look())}")

    def look(self):
        return {**self.evaluate(LOOK), "requests": self.requests, "errors": self.errors}

    def size(self, width, height, scheme):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        return True

    def keys(self, keys):
        for key in keys:
            for kind in ["keyDown", "keyUp"]:
                self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode={"Tab": 9}.get(key, 0))
        return True

    def play(self, events):
        address = self.evaluate("location.href")
        # Another page first, so that nothing of this one asks again.
        self.call("Fetch.disable")
        self.call("Page.navigate", url="about:blank")
        self.paused.clear()
        self.call("Fetch.enable", patterns=[{"urlPattern": "*/events"}])
        self.call("Page.navigate", url=address)
        end = time.monotonic() + DEADLINE
        while not self.paused and time.monotonic() < end:
            self.evaluate("1")
            time.sleep(0.05)
        body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        self.call(
            "Fetch.fulfillRequest",
            requestId=self.paused.pop(),
            responseCode=200,
            responseHeaders=[{"name": "content-type", "value": "text/event-stream"}],
            body=base64.b64encode(body.encode()).decode(),
        )
        return True

    def shot(self, path):
        # Two frames, so that what was laid out anew is drawn.
        self.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return True

    def close(self):
        self.process.kill()
        self.process.wait()


def main():
    told = json.loads(sys.stdin.readline())
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(told["chromium"], told["root"], folder)
        try:
            browser.size(1280, 800, "light")
            browser.call("Page.navigate", url=told["link"])
            for line in sys.stdin:
                [(what, given)] = json.loads(line).items()
                answer = {
                    "look": lambda _: browser.look(),
                    "until": browser.until,
                    "run": browser.evaluate,
                    "play": browser.play,
                    "keys": browser.keys,
                    "size": lambda size: browser.size(*size),
                    "shot": browser.shot,
                    "trip": lambda _: browser.evaluate(TRIP),
                }[what](given)
                print(json.dumps(answer), flush=True)
        finally:
            browser.close()


main()
