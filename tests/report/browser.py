"""Headless Chromium for the report's tests, with its network and console watched."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-default-apps", "--hide-scrollbars", "--virtual-time-budget=4000",
    "--disable-features=NetworkTimeServiceQuerying,OptimizationHints,MediaRouter,Translate",
    "--disable-domain-reliability", "--disable-client-side-phishing-detection", "--no-pings",
    "--disable-component-extensions-with-background-pages", "--disable-extensions",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What a visit left behind: the page as the browser holds it, its console, its requests."""

    dom: str
    console: list[str]
    requests: list[str]


def visit(page: Path, scratch: Path, *flags: str) -> Visit:
    assert CHROMIUM is not None
    log = scratch / "net.json"
    command = [
        CHROMIUM, *FLAGS, *flags, f"--user-data-dir={scratch / 'profile'}",
        f"--log-net-log={log}", "--enable-logging=stderr", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    events = json.loads(log.read_text())["events"] if log.exists() else []
    asked = [event.get("params", {}) for event in events]
    # what Chromium asks for on its own account has no origin; what a page asks for has one
    urls = {
        str(p["url"])
        for p in asked
        if p.get("initiator", "not an origin") != "not an origin" and "url" in p
    }
    return Visit(
        dom=done.stdout,
        console=re.findall(r"CONSOLE.*", done.stderr),
        requests=sorted(url for url in urls if re.match(r"(https?|wss?|ftp)://", url)),
    )


def screenshot(page: Path, scratch: Path, width: int, height: int, *flags: str) -> bytes:
    assert CHROMIUM is not None
    picture = scratch / f"{width}.png"
    command = [
        CHROMIUM, *FLAGS, *flags, f"--user-data-dir={scratch / 'profile'}",
        f"--window-size={width},{height}", f"--screenshot={picture}", page.as_uri(),
    ]  # fmt: skip
    subprocess.run(command, capture_output=True, timeout=90, check=True)
    return picture.read_bytes()


def axe() -> str | None:
    """The text of axe-core, from whichever package brings it along; None without one."""
    for package in ("axe_playwright_python", "axe_core_python", "axe_selenium_python"):
        found = importlib.util.find_spec(package)
        for place in (found.submodule_search_locations or []) if found else []:
            for script in Path(place).rglob("axe.min.js"):
                return script.read_text(encoding="utf-8")
    return None
