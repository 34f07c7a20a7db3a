"""The page, in a real browser: a text appears."""

import re
from importlib import resources

import pytest
from browser import browsing, find_browser
from letters import LENGTH, MASK, Gate, letters_engine, served, until

pytestmark = pytest.mark.usefixtures("single_thread")
PAGE = resources.files("edlm_engine.serving").joinpath("page.html").read_text("utf-8")
STEPS = "document.getElementById('step').textContent"
TEXT = "document.getElementById('text').textContent"
STATE = "document.getElementById('state').textContent"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if find_browser() is None:
        pytest.skip("needs a Chromium: make browser")
    with browsing(tmp_path_factory.mktemp("browser")) as page:
        yield page


def fill(page, **values):
    for name, value in values.items():
        page.run(f"document.getElementById({name!r}).value = {value!r}")


def open_page(page, url):
    page.call("Page.navigate", url=url)
    page.until("document.getElementById('model')?.textContent === 'letters'")


def test_a_text_appears(page):
    gate = Gate()
    engine = letters_engine(gate, with_energy=False)
    with served(engine) as (url, scheduler):
        page.requested.clear()
        open_page(page, url)
        fill(page, prompt="ab", suffix="xy", max_tokens=8, steps=500, seed=3)
        page.run("document.getElementById('start').click()")
        seen = []
        for step in range(1, 9):
            gate.let()
            page.until(f"{STEPS} === 'step {step} of 8'")
            kinds = {
                kind: page.run(f"[...document.querySelectorAll('#text .{kind}')].length")
                for kind in ("mask", "maybe", "fresh")
            }
            seen.append(kinds)
        page.until("!document.getElementById('start').disabled")
        gate.open()
        config = {"steps": 500, "num_candidates": 4, "new_tokens": 8}
        alone = engine.generate(1, config=config, prompt="ab", suffix="xy", seed=3)
        assert page.run(TEXT) == alone.texts[0] and len(alone.texts[0]) == 12
        assert [kinds["mask"] for kinds in seen] == [7, 6, 5, 4, 3, 2, 1, 0]
        assert sum(kinds["maybe"] for kinds in seen) > 3  # some came before what is left of it
        assert page.run(STATE) == "Done. Seed 3."
        assert page.run("document.getElementById('used').textContent") == "8 new tokens"
        assert all(address.startswith((url, "data:")) for address in page.requested)
    assert scheduler.running == 0


def test_stop_cancels_and_errors_are_shown(page):
    gate = Gate()
    with served(letters_engine(gate, with_energy=False)) as (url, scheduler):
        open_page(page, url)
        fill(page, prompt="ab", max_tokens=LENGTH - 2, steps=500)
        page.run("document.getElementById('start').click()")
        gate.let()
        page.until(f"{STEPS}.startsWith('step 1 of ')")
        assert scheduler.running == 1
        page.run("document.getElementById('stop').click()")
        page.until(f"{STATE} === 'Stopped.'")
        gate.let(2)
        until(lambda: scheduler.running == 0)
        gate.open()
        fill(page, max_tokens=99)
        page.run("document.getElementById('start').click()")
        page.until("document.getElementById('state').classList.contains('bad')")
        assert "length must be <= 24" in page.run(STATE)
        markup = "<b id=evil>?"
        fill(page, max_tokens=2, prompt=markup)
        page.run("document.getElementById('start').click()")
        page.until("document.getElementById('text').textContent.startsWith('<b id')")
        assert page.run("document.getElementById('evil')") is None


def test_it_can_be_used_by_keyboard_and_screen_reader(page):
    with served(letters_engine(), api_key="secret") as (url, _):
        page.call("Page.navigate", url=url)
        page.until("document.getElementById('form') !== null")
        unnamed = page.run(
            "[...document.querySelectorAll('input, textarea, select, progress')]"
            ".filter(e => !(e.labels?.length || e.ariaLabel)).map(e => e.id)"
        )
        assert unnamed == []
        page.run("document.querySelector('details').open = true")
        fill(page, prompt="ab", max_tokens=4, key="secret")
        page.run("document.getElementById('seed').focus()")
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        page.call("Input.dispatchKeyEvent", type="keyDown", **key)
        page.call("Input.dispatchKeyEvent", type="keyUp", **key)
        page.until(f"{STATE}.startsWith('Done.')")
        colors = set()
        for scheme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            page.call("Emulation.setEmulatedMedia", features=features)
            colors.add(page.run("getComputedStyle(document.body).backgroundColor"))
        assert len(colors) == 2


def test_it_is_one_file_that_loads_nothing():
    assert not re.search(r"https?://|\bsrc\s*=|@import|url\(", PAGE)
    assert MASK == 0 and "innerHTML" not in PAGE
