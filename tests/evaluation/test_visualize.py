"""The page tells what the result holds, and nothing else."""

import functools
import html
import html.parser
import json
import os
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

from ssmd_jax.data import tokenizers, train_tokenizer
from ssmd_jax.diffusion.window import CosineWindow
from ssmd_jax.evaluation import trace, visualize
from ssmd_jax.evaluation.settings import Setting
from ssmd_jax.sampling import speculative
from ssmd_jax.sampling.canvas import GIVEN, REPLACED
from ssmd_jax.sampling.config import SpeculativeConfig
from tests.evaluation.drawn import BATCH, CASES, LENGTH, drawn, model
from tests.tabular import tabular_model

TOKENIZER = tokenizers.make_tokenizer("text8")
EVERYTHING = pytest.mark.parametrize(("case", "prompted"), [(c, p) for c in CASES for p in (False, True)])
NAMES = ["given", "accepted", "replaced", "unverified"]  # by status
MASK = "·"
HOSTILE = "</script><img src=x onerror=alert(1)><!-- & \u2028"


def setting(case):
    sampler, config = CASES[case]
    return Setting(sampler, case, config)


def content(case, prompted):
    result, _ = drawn(case, prompted)
    return result, visualize.content(result, TOKENIZER, setting(case), model().trunk_cost, model().verify_cost)


@EVERYTHING
def test_content_is_the_result(case, prompted):
    result, data = content(case, prompted)
    assert data["sampler"] == CASES[case][0] and len(data["samples"]) == BATCH
    for row, sample in enumerate(data["samples"]):
        assert sample["text"] == TOKENIZER.decode(result.tokens[row])
        for name in ("trunk_passes", "verify_rounds", "accepted", "rejected", "unverified"):
            assert sample[name] == getattr(result, name)[row]
        assert [each["number"] for each in sample["passes"]] == list(range(result.trunk_passes[row] + 1))
        track = 0
        for each in sample["passes"]:
            for position, name, text, rejected, _ in each["revealed"]:
                status = result.status[row, track]
                assert position == result.order[row, track] and name == NAMES[status]
                assert each["number"] == result.revealed_in[row, track]
                assert text == TOKENIZER.decode([result.tokens[row, position]])
                wanted = TOKENIZER.decode([result.rejected_token[row, track]]) if status == REPLACED else ""
                assert rejected == wanted
                track += 1
        assert track == LENGTH


@EVERYTHING
def test_nfe_and_rounds_are_the_results_own(case, prompted):
    """Rounds are counted again here from the round of each token, and NFE from them."""
    result, data = content(case, prompted)
    for row, sample in enumerate(data["samples"]):
        nfe, rounds = 0.0, 0
        for each in sample["passes"]:
            settled_in = [verify_round for *_, verify_round in each["revealed"]]
            verified = [verify_round for verify_round in settled_in if verify_round]
            assert verified == sorted(verified) and set(verified) == set(range(1, each["rounds"] + 1))
            rounds += each["rounds"]
            nfe += model().trunk_cost * (each["number"] > 0) + model().verify_cost * each["rounds"]
            assert each["nfe"] == pytest.approx(nfe)
        assert rounds == result.verify_rounds[row]
        assert sample["nfe"] == result.nfe[row] and nfe == pytest.approx(sample["nfe"], rel=1e-6)


@EVERYTHING
def test_drafts_that_were_not_reached(case, prompted):
    """Window, order and verify rounds tell them; where they do not, nothing is said."""
    result, data = content(case, prompted)
    config = CASES[case][1]
    known = config.budget_nfe is None and config.order in ("random", "left_to_right")
    windows = config.window.table(LENGTH)
    for row, sample in enumerate(data["samples"]):
        revealed = int(np.sum(result.status[row] == GIVEN))
        for each in sample["passes"][1:]:
            if not known:
                assert each["dropped"] is None
                continue
            end = revealed + len(each["revealed"])
            assert len(each["revealed"]) + len(each["dropped"]) == windows[revealed]
            assert each["dropped"] == result.order[row, end : end + len(each["dropped"])].tolist()
            # A window is left unfinished by a sampler that has used up its rounds, and by no other.
            assert not each["dropped"] or (each["rounds"] == config.verify_rounds and data["sampler"] == "speculative")
            revealed = end


def test_some_drafts_are_not_reached():
    """The loops above mean little otherwise."""
    dropped = [each["dropped"] for sample in content("one round", False)[1]["samples"] for each in sample["passes"]]
    assert any(dropped)


@pytest.mark.slow
def test_a_short_row_is_shown_as_on_a_canvas_of_its_own():
    """Padding is nothing that was given, and no draft: windows are those of the row's length."""
    draw = lambda length, lengths: speculative.sample(
        model(), jax.random.key(0), CASES["one round"][1], batch_size=BATCH, length=length, lengths=lengths
    )
    short, alone = (
        visualize.content(result, TOKENIZER, setting("one round"), model().trunk_cost, model().verify_cost)
        for result in (draw(LENGTH, [5] * BATCH), draw(5, None))
    )
    assert short == alone and any(each["dropped"] for sample in short["samples"] for each in sample["passes"])
    assert all(len(sample["text"]) == 5 and not sample["passes"][0]["revealed"] for sample in short["samples"])


class Elements(html.parser.HTMLParser):
    """Names and attributes of a page's elements, and the texts of its scripts."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.scripts, self._inside = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag == "script"
        self.scripts += [""] * self._inside

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.scripts[-1] += data


class HostileTokenizer(tokenizers.ByteTokenizer):
    """Every token is an attack."""

    def _decode_run(self, ids):
        return HOSTILE * len(ids)


def make_page(tokenizer=TOKENIZER, title="run"):
    result, _ = drawn("many rounds", True)
    args = (result, tokenizer, setting("many rounds"), model().trunk_cost, model().verify_cost)
    return visualize.page(*args, title=title), visualize.content(*args)


@pytest.mark.parametrize("title", ["run", HOSTILE, visualize.PLACEHOLDER])
@pytest.mark.parametrize("tokenizer", [TOKENIZER, HostileTokenizer()])
def test_page_holds_the_content_escaped(tokenizer, title):
    page, wanted = make_page(tokenizer, title)
    plain = Elements(make_page()[0].html)
    parsed = Elements(page.html)
    assert parsed.elements == plain.elements and len(parsed.scripts) == 2
    assert parsed.scripts[1] == plain.scripts[1]
    assert json.loads(parsed.scripts[0]) == {"title": title, **wanted}
    assert not set("<>&") & set(parsed.scripts[0]) and parsed.scripts[0].isascii()


def test_page_needs_nothing_from_outside():
    page = make_page()[0].html
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)
    for tag, attributes in Elements(page).elements:
        assert not {"src", "srcset"} & set(attributes)
        assert "href" not in attributes or (tag, attributes["href"]) == ("link", "data:,")
    assert "default-src 'none'" in page


def test_notebooks_show_the_page_in_a_frame():
    page = make_page(title=HOSTILE)[0]
    [(tag, attributes)] = Elements(page._repr_html_()).elements
    assert tag == "iframe" and attributes["srcdoc"] == page.html


def test_template_goes_with_the_package():
    setup = (pathlib.Path(__file__).parents[2] / "setup.py").read_text()
    assert re.search(r'package_data=\{.*"ssmd_jax.evaluation": \["\*\.html"\]\}', setup)


@functools.cache
def subwords():
    """Samples in pieces of several characters, with line feeds, prompt and all."""
    text = 'the king & the "queen" <b>said</b>\nthe old oak tree stands near the river\n'
    tokenizer = train_tokenizer.train_sentencepiece([text * 20], vocab_size=310)
    network = tabular_model(len(tokenizer.encode(text)), tokenizer.num_tokens, scale=0.3)
    ids = tokenizer.encode(text)
    mask = np.arange(len(ids)) % 3 == 0
    config = SpeculativeConfig(CosineWindow(0.1), 3)
    shape = (2, len(ids))
    prompt = {"prompt": np.broadcast_to(ids, shape), "prompt_mask": np.broadcast_to(mask, shape)}
    result = speculative.sample(network, jax.random.key(0), config, batch_size=2, length=len(ids), **prompt)
    return result, tokenizer, Setting("speculative", "", config), network.trunk_cost, network.verify_cost


def characters():
    """Samples of characters, some of them rejected."""
    return (
        drawn("many rounds", False)[0],
        TOKENIZER,
        setting("many rounds"),
        model().trunk_cost,
        model().verify_cost,
    )


@pytest.fixture(scope="module")
def browser():
    """Playwright's Chromium, or one of the system."""
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = [None, *filter(None, map(shutil.which, names))]
    # Chromium's own sandbox does not run as root, as which containers run tests.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with api.sync_playwright() as playwright:
        for path in found:
            try:
                launched = playwright.chromium.launch(executable_path=path, args=arguments)
            except api.Error:
                continue
            yield launched
            launched.close()
            return
    pytest.skip("there is no Chromium: playwright install chromium, or apt-get install chromium")


class Opened:
    """A page in a browser, and what it complained of."""

    def __init__(self, browser, tmp_path, drawn, **context):
        file = tmp_path / "page.html"
        visualize.write(visualize.page(*drawn, title=HOSTILE), file)
        self.tab = browser.new_context(**context).new_page()
        self.complaints, self.requests = [], []
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(file.as_uri())

    def move(self, number):
        self.tab.locator("#slider").fill(str(number))

    def at(self):
        return int(self.tab.locator("#slider").input_value())

    def texts(self):
        return self.tab.locator("#canvas .text").all_text_contents()

    def drafts(self):
        return self.tab.locator("#canvas .draft:visible").all_text_contents()

    def boxes(self):
        """Left edge and width of every token, in pixels."""
        measured = "all => all.map(each => [each.getBoundingClientRect().x, each.getBoundingClientRect().width])"
        return self.tab.locator("#canvas .token").evaluate_all(measured)

    def figure(self, name):
        value, _, total = self.tab.locator(f"#totals .{name} dd").text_content().partition(" / ")
        return float(value), float(total)


def check_passes(opened, result, tokenizer, row):
    """Every position of the slider shows the canvas after that pass, the drafts rejected in it, and the counts."""
    pieces = [trace.visible(tokenizer.decode([token])) for token in result.tokens[row]]
    shown_in = np.empty(len(pieces), int)
    shown_in[result.order[row]] = result.revealed_in[row]
    for number in range(int(result.trunk_passes[row]) + 1):
        opened.move(number)
        assert opened.texts() == [p if n <= number else MASK for p, n in zip(pieces, shown_in, strict=True)]
        now = result.revealed_in[row] == number
        is_rejected = now & (result.status[row] == REPLACED)
        at = np.argsort(result.order[row][is_rejected])
        rejected = [trace.visible(tokenizer.decode([token])) for token in result.rejected_token[row][is_rejected][at]]
        assert opened.drafts() == rejected
        assert opened.figure("passes") == (number, result.trunk_passes[row])
        for name, status in (("accepted", 1), ("rejected", 2), ("unverified", 3)):
            until = (result.revealed_in[row] <= number) & (result.status[row] == status)
            assert opened.figure(name) == (until.sum(), getattr(result, name)[row])
    assert opened.figure("nfe") == pytest.approx((result.nfe[row], result.nfe[row]), abs=0.0051)
    assert opened.tab.locator("#final").text_content() == tokenizer.decode(result.tokens[row])


@pytest.mark.slow
@pytest.mark.parametrize("samples", [characters, subwords])
def test_slider_in_a_browser(browser, tmp_path, samples):
    result, tokenizer, *_ = jax.device_get(samples()[0]), *samples()[1:]
    opened = Opened(browser, tmp_path, samples())
    for row in range(len(result.tokens)):
        opened.tab.locator("#sample").select_option(str(row))
        check_passes(opened, result, tokenizer, row)
    assert opened.complaints == [] and len(opened.requests) == 1
    if samples is characters:
        assert "".join(opened.texts()) == tokenizer.decode(result.tokens[-1])


@pytest.mark.slow
def test_keys_and_buttons_in_a_browser(browser, tmp_path):
    opened = Opened(browser, tmp_path, subwords())
    press, click = opened.tab.keyboard.press, lambda name: opened.tab.locator(f"#{name}").click()
    last = int(subwords()[0].trunk_passes[0])
    assert last > 2 and opened.at() == 0
    for key, wanted in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", last), ("Home", 0)):
        press(key)
        assert opened.at() == wanted
    for name, wanted in (("next", 1), ("last", last), ("back", last - 1), ("first", 0)):
        click(name)
        assert opened.at() == wanted
    opened.tab.locator("#slider").focus()
    press("ArrowRight")
    assert opened.at() == 1
    opened.tab.locator("#bars .bar").nth(2).click()
    assert opened.at() == 2
    opened.tab.locator("#speed").select_option("16")
    click("play")
    assert opened.tab.locator("#play").text_content() == "Pause"
    opened.tab.locator("#next:disabled").wait_for()
    assert opened.at() == last
    assert opened.tab.locator("#play").text_content() == "Play"
    press("]")
    assert opened.tab.locator("#sample").input_value() == "1" and opened.at() == 0
    opened.tab.locator("#canvas .token").first.hover()
    assert "of the order" in opened.tab.locator("#about").text_content()
    assert opened.complaints == []


@pytest.mark.slow
def test_phone_and_dark_in_a_browser(browser, tmp_path):
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    colours = set()
    for scheme in ("light", "dark"):
        opened = Opened(browser, tmp_path, subwords(), color_scheme=scheme, **phone)
        colour = lambda opened=opened: opened.tab.evaluate("getComputedStyle(document.body).backgroundColor")
        colours.add(colour())
        assert opened.tab.evaluate("document.documentElement.scrollWidth") == 360
        before = opened.boxes()
        opened.tab.locator("#next").tap()
        assert opened.at() == 1
        opened.tab.locator("#last").tap()
        assert opened.boxes() == before  # nothing moves while it plays
        opened.tab.locator("#theme").tap()
        assert colour() not in (colours if scheme == "light" else ())
        assert opened.complaints == []
    assert len(colours) == 2


def test_settings_of_the_verifier_are_no_settings_of_plain_sampling():
    described = {
        sampler: visualize._described(Setting(sampler, "", SpeculativeConfig(CosineWindow(0.1), 2)))
        for sampler in ("plain", "speculative")
    }
    assert set(described["plain"]) == {"window", "temperature", "top p", "order"}
    assert "divergence stop" in described["speculative"]
