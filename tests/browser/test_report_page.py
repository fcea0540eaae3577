"""The report in a real browser that reaches nothing: it must be whole, ask for nothing, and fit a phone."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from parlai_safety.evaluation.report_runs import read_runs, write_runs_report
from tests.evaluation.evaluations import three_runs
from tests.evaluation.html_page import Page, outside

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
PHONE = 390

# Writes the width that the page wants at each window width into the document, which --dump-dom then prints.
FRAMES = """<!DOCTYPE html><html><body>{frames}<p id="found">nothing</p><script>
window.onload = () => {{
  const found = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument;
    for (const fold of page.querySelectorAll("details")) fold.open = true;
    const texts = [...page.querySelectorAll("svg text")].map(text => text.getBoundingClientRect());
    const small = texts.map(box => box.height).filter(height => height > 0);
    const wide = [...page.querySelectorAll("svg")].filter(svg => {{
      const whole = svg.getBoundingClientRect();
      return [...svg.querySelectorAll("text")].some(text => {{
        const box = text.getBoundingClientRect();
        return box.left < whole.left - 1 || box.right > whole.right + 1;
      }});
    }});
    return {{
      window: frame.clientWidth, wanted: page.documentElement.scrollWidth, height: page.documentElement.scrollHeight,
      cut: wide.length, texts: texts.length, smallest: Math.min(...small),
    }};
  }});
  document.getElementById("found").textContent = JSON.stringify(found);
}};
</script></body></html>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("browser")
    return write_runs_report(read_runs(three_runs(root)), root / "report.html").html


def browse(url: str, folder: Path, *flags: str) -> str:
    """The document as the browser has it after loading; no name resolves there."""
    if BROWSER is None:
        pytest.skip(f"no browser on this machine: none of {', '.join(NAMES)} is on the PATH")
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}",
        *flags,
        "--dump-dom",
        url,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_no_address_in_the_page_leads_outside(report):
    assert outside(report.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "planted",
    [
        '<img src="https://example.org/a.png">',
        "<style>@import 'a.css';</style>",
        '<p style="background: url(//example.org)"></p>',
        '<a href="https://example.org">x</a>',
        '<p onclick="fetch(1)"></p>',
        '<meta http-equiv="refresh" content="1">',
    ],
)
def test_an_address_that_leads_outside_would_be_found(report, planted):
    assert outside(report.read_text(encoding="utf-8").replace("</body>", f"{planted}</body>"))


def asked_by_the_page(url: str, folder: Path) -> tuple[str, list[str]]:
    """The document, and what it asked the network for; what the browser asks for itself is left out."""
    log = folder / "net.json"
    dom = browse(url, folder, f"--log-net-log={log}")
    found = [event.get("params") or {} for event in json.loads(log.read_text(encoding="utf-8"))["events"]]
    return dom, [one["url"] for one in found if "file://" in str(one.get("network_isolation_key"))]


@pytest.mark.slow
def test_the_page_is_whole_without_a_network(report, tmp_path):
    dom, asked = asked_by_the_page(report.as_uri(), tmp_path)
    assert asked == []
    page = Page(dom)
    said = " ".join("".join(page.text).replace("\N{NO-BREAK SPACE}", " ").split())
    for needed in (
        "CRINGE $a$ <b>: 10.3 % unsafe replies against 29.3 % of base.",
        "Failed: broken.",
        "29.3 % [19.2, 42.0] n 58, 2 unscored corrected 26.4 % [20.5, 35.2]",
        "no card: error rates unknown",
        "Content warning",
    ):
        assert needed in said
    assert [tag for tag, _ in page.tags].count("svg") == 6


@pytest.mark.slow
def test_a_page_that_asks_the_network_would_be_caught(tmp_path):
    planted = tmp_path / "planted.html"
    planted.write_text('<img src="http://planted.example/a.png">')
    assert asked_by_the_page(planted.as_uri(), tmp_path)[1] == ["http://planted.example/a.png"]


@pytest.mark.slow
def test_the_page_fits_a_phone_and_a_desk(report, tmp_path):
    frames = "".join(
        f'<iframe src="{report.name}" width="{width}" height="800" style="border:0"></iframe>'
        for width in (PHONE, 1280)
    )
    harness = report.parent / "frames.html"
    harness.write_text(FRAMES.format(frames=frames))
    dom = browse(harness.as_uri(), tmp_path, "--allow-file-access-from-files", "--window-size=1400,1000")
    found = json.loads(dom.split('<p id="found">')[1].split("</p>")[0])
    assert [one["window"] for one in found] == [PHONE, 1280]
    for one in found:
        assert one["wanted"] <= one["window"], "the page must not scroll sideways"
        assert one["cut"] == 0 and one["texts"] > 50, "no text of a picture may be cut off"
        # The box of a line is about 1.17 of the letters' size; 11 pixels are the least that is read at arm's length.
        assert one["smallest"] >= 1.15 * 11
