"""The page at /docs in a real browser: a try-it of each model, a picture that is sent, hostile names, and its policy.

Clicks what a person clicks. The lines that it shows to be copied are run as they are.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from foldserve.models import mlp
from foldserve.models.export import export_model
from tests.e2e.server_process import START_LIMIT_S, ServerProcess, serving
from tests.e2e.test_openapi import save_models
from tests.service.repositories import save_linear, save_onnx

pytestmark = pytest.mark.e2e
expect.set_options(timeout=1000 * START_LIMIT_S)

LANGUAGES = {"curl": "curl", "Python": "python3", "JavaScript": "node"}
"""The program that each needs."""
BETWEEN = "--- next ---"
KEYS = {"me": ("my-key-0123456789", "infer"), "operator": ("operators-key-0123456789", "control")}
PHONE = {"width": 390, "height": 844}
HOSTILE = "</td><script>window.pwned=1</script><img src=x onerror='window.pwned=1'>"
OUTPUT = "'\"$(touch pwned)`&<b>"
# A violation is also told to the page, wherever the console is.
NOTE_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
"""


@dataclass
class Shown:
    """A page, and what its console said: errors alone."""

    page: Page
    said: list[str] = field(default_factory=list)

    def model(self, name: str) -> Locator:
        """A model's section, opened."""
        section = self.page.locator(f"[id='model-{name}']")
        if section.get_attribute("open") is None:
            section.locator("summary").click()
        section.locator(".send").wait_for()
        return section

    def check(self) -> None:
        """Nothing was against the policy, and no script failed."""
        assert self.page.evaluate("window.violations") == []
        assert self.page.evaluate("window.pwned") is None
        assert self.said == []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("docs")
    repository = folder / "repository"
    save_models(repository)
    network = mlp.build()
    export_model(network, mlp.example_inputs(), repository, name="mlp", labels=("a", "b", HOSTILE, "d", "e"))
    tensor = helper.make_tensor_value_info
    for name, columns in (("hostile", 2), ("wide", 500)):
        save_onnx(
            repository / name / "1" / "model.onnx",
            [helper.make_node("Add", [HOSTILE, HOSTILE], [OUTPUT])],
            [tensor(HOSTILE, TensorProto.FLOAT, ["rows", columns])],
            [tensor(OUTPUT, TensorProto.FLOAT, ["rows", columns])],
            {},
        )
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "1" / "model.onnx").write_bytes(b"junk")
    with serving(repository, folder / "output", "--api-servers", "1") as running:
        for name in ("mlp", "photos", "hostile", "wide"):
            running.wait_until(f"/v2/models/{name}/ready", 200)
        yield running


@pytest.fixture(scope="module")
def browser(browser_path: str) -> Iterator[Browser]:
    with (
        sync_playwright() as play,
        play.chromium.launch(executable_path=browser_path, args=["--disable-gpu"]) as started,
    ):
        yield started


@contextlib.contextmanager
def opened(url: str, browser: Browser) -> Iterator[Shown]:
    """The page, before anything is known of what has come."""
    with browser.new_context() as context:
        # Nothing but the server is there.
        context.route(lambda asked: not asked.startswith((url, "blob:")), lambda route: route.abort())
        page = context.new_page()
        page.set_default_timeout(1000 * START_LIMIT_S)
        page.add_init_script(NOTE_VIOLATIONS)
        found = Shown(page)
        page.on("console", lambda line: found.said.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: found.said.append(str(error)))
        page.goto(f"{url}/docs")
        yield found


@pytest.fixture
def shown(server: ServerProcess, browser: Browser) -> Iterator[Shown]:
    with opened(server.url, browser) as found:
        expect(found.page.locator("details.model[open] .send").first).to_be_visible()
        yield found


def send(section: Locator) -> str:
    """Send what is there; returns the line that says how it went."""
    section.locator(".send").click()
    badge = section.locator(".outcome .badge")
    expect(badge).to_be_visible()
    return section.locator(".outcome").inner_text()


def test_a_click_sends_the_example_and_shows_the_answer_and_where_the_time_went(shown: Shown) -> None:
    mlp = shown.model("mlp")
    body = json.loads(mlp.locator("textarea").input_value())
    assert body == {"inputs": [[0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]]}
    outcome = send(mlp)
    assert outcome.startswith("200 OK")
    assert "in a batch of 1 row" in outcome
    stages = [text.split()[0] for text in mlp.locator(".legend li").all_inner_texts()]
    assert stages == ["decode", "queue", "gather", "run", "scatter", "encode"]
    answer = json.loads(mlp.locator(".parts pre").inner_text())
    assert len(answer["outputs"]["y"][0]) == 5
    labels = [row.split("\t")[0] for row in mlp.locator(".scores tr").all_inner_texts()]
    assert sorted(labels) == [
        "</td><script>window.pwned=1</script><img src=x onerror='window.pwned=1'>",
        *"abde",
    ]
    shown.check()


def test_what_is_edited_is_sent_and_a_refusal_is_shown(shown: Shown) -> None:
    mlp = shown.model("mlp")
    mlp.locator("textarea").fill('{"inputs": [[1, 2]]}')
    assert "json={" in lines(mlp, "Python")
    assert send(mlp).startswith("400 Bad Request")
    assert "dim 1 is 2; expected 10" in mlp.locator(".parts pre").inner_text()
    # The browser itself notes an answer of 400.
    assert all("400" in line for line in shown.said)


def test_a_picture_is_chosen_shown_and_sent(shown: Shown, tmp_path: Path) -> None:
    Image.new("RGB", (90, 70), (10, 200, 10)).save(tmp_path / "green.png")
    photos = shown.model("photos")
    photos.locator("input[type=file]").set_input_files(tmp_path / "green.png")
    thumbnail = photos.locator(".drop img")
    expect(thumbnail).to_be_visible()
    assert thumbnail.evaluate("image => image.decode().then(() => image.naturalWidth)") == 90
    assert send(photos).startswith("200 OK")
    assert photos.locator(".scores tr").first.inner_text().split()[0] == "green"
    assert "image/png" in lines(photos, "curl")
    shown.check()


def test_a_picture_may_be_dropped(shown: Shown, tmp_path: Path) -> None:
    photos = shown.model("photos")
    data = shown.page.evaluate_handle(
        """async () => {
            const canvas = new OffscreenCanvas(40, 30);
            canvas.getContext("2d").fillRect(0, 0, 40, 30);
            const data = new DataTransfer();
            data.items.add(new File([await canvas.convertToBlob()], "black.png", { type: "image/png" }));
            return data;
        }"""
    )
    photos.locator(".drop").dispatch_event("drop", {"dataTransfer": data})
    expect(photos.locator(".drop img")).to_be_visible()
    assert send(photos).startswith("200 OK")
    shown.check()


def test_names_out_of_model_files_are_texts_and_nothing_else(shown: Shown) -> None:
    hostile = shown.model("hostile")
    expect(hostile.locator("td", has_text=HOSTILE)).to_be_visible()
    assert send(hostile).startswith("200 OK")
    assert json.loads(hostile.locator(".parts pre").inner_text())["outputs"] == {OUTPUT: [[0.0, 0.2]]}
    # Those of the page's own: what a name wanted to make is not among them.
    assert shown.page.locator("script").count() == 1
    assert hostile.locator("script, img, b").count() == 0
    shown.check()


def test_a_model_whose_example_is_long_is_sent_zeros(shown: Shown) -> None:
    wide = shown.model("wide")
    assert wide.locator("textarea").input_value().count("0") == 500
    assert send(wide).startswith("200 OK")
    wide.get_by_label("Call").select_option(label="Raw bytes, POST /predict/wide")
    assert send(wide).startswith("200 OK")
    assert "FP32 [1,500]" in wide.locator(".parts pre").inner_text()
    shown.check()


def test_a_model_that_cannot_be_served_says_why(shown: Shown) -> None:
    broken = shown.page.locator("section.model", has_text="cannot be served")
    assert "not a model that onnxruntime can load" in broken.inner_text()
    expect(shown.page.locator("#state .badge")).to_have_text("not ready")


def lines(section: Locator, language: str) -> str:
    """Those to be copied."""
    section.get_by_label(language, exact=True).check()
    return section.locator(".code pre").inner_text()


def test_without_keys_none_is_asked_for(shown: Shown) -> None:
    expect(shown.page.get_by_label("API key")).to_be_hidden()
    assert "KEY" not in lines(shown.model("clipped"), "curl")


def test_where_the_server_asks_for_a_key_the_page_does_and_sends_it(
    browser: Browser, tmp_path: Path, programs: list[str]
) -> None:
    for name, weight in (("linear", 1.0), ("other", 2.0)):
        save_linear(tmp_path / "repository" / name / "1" / "model.onnx", np.full((10, 5), weight, np.float32))
    keys = [{"name": name, "key": key, "scopes": [scope]} for name, (key, scope) in KEYS.items()]
    (tmp_path / "keys.yaml").write_text(json.dumps(keys))
    options = ("--api-servers", "1", "--keys", str(tmp_path / "keys.yaml"))
    with serving(tmp_path / "repository", tmp_path / "output", *options) as server:
        server.headers = {"x-api-key": KEYS["me"][0]}
        server.wait_until("/v2/health/ready", 200)
        with opened(server.url, browser) as shown:
            state, field = shown.page.locator("#state"), shown.page.get_by_label("API key")

            def use(key: str) -> None:
                field.fill(key)
                shown.page.get_by_role("button", name="Use").click()

            expect(state).to_contain_text("needs a key the request has no key")
            expect(field).to_be_visible()
            expect(shown.page.locator(".model")).to_have_count(0)
            use("a-key-that-nobody-gave")
            expect(state).to_contain_text("needs a key the key is not one of this server's")
            use(KEYS["operator"][0])
            expect(state).to_contain_text("not with this key this call needs a key with the scope infer")
            use(KEYS["me"][0])
            expect(state).to_contain_text("ready")
            expect(field).to_be_visible()
            linear = shown.model("linear")
            assert send(linear).startswith("200 OK")
            for language in programs:
                text = lines(linear, language)
                assert KEYS["me"][0] not in text
                assert "'linear'" in run(language, [text], tmp_path, KEY=KEYS["me"][0]).replace('"', "'")
            # Every refusal is noted by the browser, and nothing else.
            assert shown.said
            assert all("401" in line or "403" in line for line in shown.said)
            assert shown.page.evaluate("window.violations") == []
        assert not [key for key, _ in KEYS.values() if key in server.output]


def run(language: str, texts: list[str], folder: Path, **environ: str) -> str:
    """What the lines print, one call after the other in one process, with a line between two."""
    if language == "Python":
        command = [sys.executable, "-c", f"\nprint({BETWEEN!r})\n".join(texts)]
    elif language == "JavaScript":
        blocks = "".join(f"{{\n{text}\nconsole.log({BETWEEN!r});\n}}\n" for text in texts)
        command = ["node", "--input-type=module", "--eval", blocks]
    else:
        # Our python3 has numpy, and curl tells what was refused.
        text = f"\necho; echo {BETWEEN}\n".join(texts)
        text = text.replace("curl ", "curl -sSf ").replace("python3 ", f"{sys.executable} ")
        command = ["bash", "-ec", text]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=START_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, (done.stdout.split(BETWEEN)[-1], done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def programs() -> list[str]:
    """The languages that are here."""
    return [language for language, program in LANGUAGES.items() if shutil.which(program)]


@pytest.fixture(scope="module")
def copied(server: ServerProcess, browser: Browser) -> dict[str, list[str]]:
    """The lines of every call, by language."""
    found: dict[str, list[str]] = {language: [] for language in LANGUAGES}
    with opened(server.url, browser) as shown:
        for name in ("clipped", "hostile", "lengths", "photos", "several"):
            section = shown.model(name)
            for option in section.get_by_label("Call").locator("option").all_inner_texts():
                # The others are the same with another path.
                if "/versions/" not in option and not option.endswith(("/1", "/2")):
                    section.get_by_label("Call").select_option(label=option)
                    for language, texts in found.items():
                        texts.append(lines(section, language))
    return found


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_lines_to_be_copied_make_the_same_call(
    copied: dict[str, list[str]], programs: list[str], tmp_path: Path, language: str
) -> None:
    if language not in programs:
        pytest.skip(f"{LANGUAGES[language]} is not installed")
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "photo.jpg")
    # A file of an <input> is a browser's.
    texts = [text for text in copied[language] if "of an <input type=file>" not in text]
    printed = run(language, texts, tmp_path)
    assert not re.search(r"\berror\b", printed), printed
    assert len(texts) >= 18
    assert not (tmp_path / "pwned").exists()


def test_raw_numbers_of_the_page_are_those_of_its_lines(shown: Shown, tmp_path: Path) -> None:
    clipped = shown.model("clipped")
    clipped.get_by_label("Call").select_option(label="Raw bytes, POST /predict/clipped")
    send(clipped)
    there = clipped.locator(".parts pre").inner_text().splitlines()[1]
    run("curl", [lines(clipped, "curl")], tmp_path)
    copied = np.fromfile(tmp_path / "y.bin", "<f4")
    np.testing.assert_array_equal(np.float32([float(number) for number in there.split(", ")]), copied)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(shown: Shown, scheme: Any) -> None:
    shown.page.emulate_media(color_scheme=scheme)
    shown.page.set_viewport_size(PHONE)
    for name in ("mlp", "hostile", "photos"):
        shown.model(name)
    shown.page.locator("#calls summary").click()
    send(shown.model("mlp"))
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    # WCAG's ratio for text of this size.
    assert shown.page.evaluate(CONTRAST) >= 4.5


CONTRAST = """() => {
    const light = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92
            : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
    const paper = (one) => {
        const colour = numbers(getComputedStyle(one).backgroundColor);
        return colour.length === 4 && colour[3] === 0 && one.parentElement ? paper(one.parentElement) : colour;
    };
    const texts = "a, h1, h2, h3, p, td, th, pre, label, button, textarea, .badge, .brief";
    const ratios = [...document.querySelectorAll(texts)]
        .filter((one) => one.checkVisibility())
        .map((one) => [light(numbers(getComputedStyle(one).color)), light(paper(one))].sort((a, b) => b - a))
        .map(([most, least]) => (most + 0.05) / (least + 0.05));
    return Math.min(...ratios);
}"""


def test_every_control_has_a_name_and_can_be_reached_by_the_keyboard(shown: Shown) -> None:
    shown.model("photos")
    names = shown.page.evaluate(
        """() => [...document.querySelectorAll("input, select, textarea, button")]
            .filter((one) => one.checkVisibility())
            .map((one) => one.labels?.[0]?.textContent || one.textContent)"""
    )
    assert names
    assert all(names)
    shown.page.locator("details.model[open] select").first.focus()
    reached = set()
    for _ in range(30):
        shown.page.keyboard.press("Tab")
        reached.add(shown.page.evaluate("document.activeElement.className || document.activeElement.type"))
    assert {"send", "radio", "button"} <= reached
