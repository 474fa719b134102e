"""The page in headless Chromium.

From disk without a network, by pointer and by keyboard, on a desk and on a phone, and served.
"""

import json
import re
import shutil
import struct
import threading
from functools import partial

import pytest
from families import shared_model, tiny_tokenizer
from made_heads import made_inference, made_sweep, made_token_attention
from made_neurons import made_training
from made_patterns import made_patterns
from made_results import HOSTILE, MANIFEST, made_behavior, made_series

from rim_lens import (
    RefusalJudge,
    ablate_heads,
    ablation_sweep,
    judge_report,
    refusal_score,
    token_attention,
    verdicts,
)
from rim_lens.audit.findings import findings_of
from rim_lens.plots.style import number
from rim_lens.report.page import report_page
from rim_lens.serve.answers import PageModel
from rim_lens.serve.http import PageServer

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (the browser extra)")
expect = playwright.expect
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to open the page with"),
]
PLAN = {"model": "tiny", "checkpoints": None, "n": 32}
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
MAPS = '.drawing[data-cells="heads"]'


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    behavior, folder = made_behavior(), tmp_path_factory.mktemp("page")
    results = {"behavior": behavior, "series": made_series(), **made_inference(), **made_training()}
    results |= made_patterns(folder, behavior, tiny_tokenizer())
    path = folder / "report.html"
    path.write_text(report_page(results, findings_of(results), MANIFEST, PLAN))
    return path.as_uri()


@pytest.fixture
def opened(browser):
    """A function that opens an address and gives the page and what it wrote to the console."""
    contexts = []

    def open_page(url, viewport=DESK, scheme="light", offline=True):
        context = browser.new_context(viewport=viewport, color_scheme=scheme, offline=offline)
        context.set_default_timeout(60_000)
        contexts.append(context)
        page, console = context.new_page(), []
        page.on("console", lambda message: console.append(message.text))
        page.on("pageerror", lambda error: console.append(str(error)))
        page.on("requestfailed", lambda request: console.append(request.url))
        page.goto(url)
        return page, console

    yield open_page
    for context in contexts:
        context.close()


def first_map(page):
    box = page.locator(MAPS).first
    box.scroll_into_view_if_needed()
    box.locator(".nsewdrag").first.wait_for(state="attached")
    return box


def click_head(box, layer, head):
    """Click the middle of a head's cell, wherever it is drawn."""
    place = box.evaluate(
        "(box, [layer, head]) => { const { xaxis, yaxis } = box._fullLayout;"
        " return { x: xaxis._offset + xaxis.l2p(layer), y: yaxis._offset + yaxis.l2p(head) }; }",
        [layer, head],
    )
    box.click(position=place)


def shown_tokens(page, view):
    """(text, exact percent of attention) of every token in one view of the panel."""
    spans = page.locator("#panel .view").nth(view).locator(".token")
    told = spans.evaluate_all("(all) => all.map((one) => [one.textContent, one.title])")
    return [(text, float(re.search(r"([\d.]+) %", title)[1])) for text, title in told]


def test_every_figure_is_drawn_from_disk_and_nothing_is_logged(opened, address):
    page, console = opened(address)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    expect(page.locator(".drawing:not(:has(.main-svg))")).to_have_count(0)
    assert page.locator(".drawing").count() > 10
    assert console == []
    assert page.title() == "Reasoning-induced misalignment: tiny <model>"  # nothing of the prompts ran
    assert page.locator("body").inner_text().count("<script>document.title='owned'") > 0


def test_no_figure_offers_to_upload_itself(opened, address, tmp_path):
    page, _ = opened(address)
    first_map(page)
    alone = tmp_path / "figure.html"
    made_sweep().plot().write_html(alone)  # as a script or a notebook shows it, with plotly's own settings
    other, _ = opened(alone.as_uri())
    other.locator(".modebar-btn").first.wait_for(state="attached")
    for one in (page, other):
        titles = one.locator(".modebar-btn").evaluate_all("(all) => all.map((one) => one.dataset.title)")
        assert any("PNG" in title or "png" in title for title in titles)
        assert not [title for title in titles if re.search("share|cloud|upload|edit in", title, re.IGNORECASE)]


WCAG = {"type": "tag", "values": ["wcag2a", "wcag2aa"]}
CONTRAST = {"type": "rule", "values": ["color-contrast"]}


@pytest.mark.parametrize(("scheme", "rules"), [("light", WCAG), ("dark", CONTRAST)], ids=["light", "dark"])
def test_axe_finds_nothing_serious(opened, address, scheme, rules):
    """Deque's axe-core, on the page with every part unfolded and a head's panel open."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed (the dev extra)")
    page, _ = opened(f"{address}#L1H2", scheme=scheme)
    page.locator("#panel-title").wait_for()
    page.evaluate("document.querySelectorAll('main details').forEach((one) => (one.open = true))")
    found = axe.Axe().run(page, options={"resultTypes": ["violations"], "runOnly": rules}).response["violations"]
    serious = [
        f"{one['id']}: {one['nodes'][0]['html'][:200]} ({len(one['nodes'])})"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_a_click_on_a_head_shows_its_words_and_its_rows(opened, address):
    page, console = opened(address)
    click_head(first_map(page), 3, 2)
    assert page.locator("#panel-title").inner_text() == "Head L3H2"
    assert page.url.endswith("#L3H2")
    attention = made_token_attention()
    for view, chat in enumerate((0, 1)):
        expected = attention.of(chat, (3, 2))
        shown = shown_tokens(page, view)
        assert [text for text, _ in shown] == [text.replace("\n", "↵") for text in expected["text"]]
        assert [share for _, share in shown] == pytest.approx((100 * expected["weight"]).tolist(), abs=0.011)
    sweep = made_sweep().table.set_index("name")
    click_head(first_map(page), 1, 2)
    facts = page.locator("#panel-facts").inner_text()
    assert number(sweep.loc["L1H2", "effect"], sign=True) in facts
    assert page.locator(f"{MAPS} .chosen:visible").count() > 0
    assert console == []


def test_a_prompt_with_a_script_shows_as_text(opened, address):
    page, _ = opened(f"{address}#L1H2")
    assert page.locator("#panel-request option").first.inner_text() == " ".join(HOSTILE.split())[:90]
    assert any(text == HOSTILE for text, _ in shown_tokens(page, 1))
    assert page.locator("#panel script, #panel img").count() == 0


def test_links_to_heads_and_neurons(opened, address):
    page, _ = opened(f"{address}#L1H2")
    assert page.locator("#panel-title").inner_text() == "Head L1H2"
    expect(page.locator(f"{MAPS} .chosen").first).to_be_in_viewport()
    box = page.locator(MAPS).first
    assert box.evaluate("(one) => one.clientHeight") == box.evaluate(
        "(one) => one.querySelector('.main-svg').clientHeight"
    )
    page.goto(f"{address}#L1N3")
    assert page.locator("#panel-title").inner_text() == "Neuron L1N3"
    assert "before → after" in page.locator("#panel-facts").inner_text()
    page.goto(f"{address}#L99H9")
    assert "There is no L99H9 on this page." in page.locator("#panel-facts").inner_text()
    page.goto(f"{address}#methods")
    page.go_back()
    page.go_back()
    assert page.locator("#panel-title").inner_text() == "Neuron L1N3"


def test_labels_that_a_reader_gives_are_rows_of_judge_report(opened, address, tmp_path):
    page, console = opened(address)
    box = page.locator(".answers").first
    box.evaluate("(one) => { one.open = true; }")
    save = box.get_by_role("button", name="Save labels.jsonl")
    expect(save).to_be_disabled()
    for i, label in enumerate(("partial", "refused")):
        box.locator("select").nth(i).select_option(label)
    expect(box.get_by_role("status")).to_have_text("2 labelled")
    with page.expect_download() as download:
        save.click()
    download.value.save_as(tmp_path / "labels.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    answers = made_behavior().answers
    first = answers[answers["set"] == "harmful"].head(2)
    assert [row["request"] for row in rows] == first["request"].tolist()
    assert [row["response"] for row in rows] == first["response"].tolist()
    assert [row["judged"] for row in rows] == first["label"].tolist()
    report = judge_report(RefusalJudge(), tmp_path / "labels.jsonl")
    assert sorted(report.answers["label"]) == ["partial", "refused"]
    assert console == []


def test_the_contents_mark_the_part_that_is_read(opened, address):
    page, _ = opened(address)
    page.emulate_media(reduced_motion="reduce")  # no smooth scrolling over the whole page
    current = page.locator("nav a[aria-current]")
    assert current.evaluate_all("(all) => all.map((one) => one.hash)") == ["#summary"]
    for link in ("#ablation", "#methods", "#behaviour"):
        page.locator(f'nav a[href="{link}"]').click()
        expect(page.locator(f'nav a[href="{link}"][aria-current]')).to_have_count(1, timeout=30_000)
        expect(current).to_have_count(1)


def test_a_name_in_a_table_is_a_link(opened, address):
    page, _ = opened(address)
    link = page.locator("#ablation a.unit").first
    link.evaluate("(one) => { one.closest('details').open = true; }")
    link.click()
    assert page.locator("#panel-title").inner_text() == f"Head {link.inner_text()}"


def test_the_keyboard_reaches_every_head(opened, address):
    page, console = opened(address)
    box = first_map(page)
    box.focus()
    for _ in range(8):
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowDown")
    assert page.locator("#spoken").inner_text().startswith("L0H0")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    assert page.locator("#panel").is_hidden()
    page.keyboard.press("Enter")
    assert page.locator("#panel-title").inner_text() == "Head L1H1"
    assert box.evaluate("(box) => box === document.activeElement")
    assert box.evaluate("(box) => getComputedStyle(box).outlineStyle") == "solid"
    assert box.locator(".cursor").is_visible()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "panel-title"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "panel-close"
    page.keyboard.press("Escape")
    assert page.locator("#panel").is_hidden()
    assert box.evaluate("(box) => box === document.activeElement")
    assert "#" not in page.url
    assert console == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_it_fits_the_window_in_light_and_dark(opened, address, viewport, scheme):
    page, _ = opened(address, viewport, scheme)
    click_head(first_map(page), 1, 2)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    panel = page.locator("#panel").bounding_box()
    assert panel["height"] < 0.6 * viewport["height"]
    assert panel["y"] + panel["height"] == pytest.approx(viewport["height"], abs=1)
    assert page.locator("#panel").evaluate("(one) => one.scrollWidth <= one.clientWidth")
    assert page.locator("nav").evaluate("(one) => getComputedStyle(one).position") == (
        "sticky" if viewport is DESK else "static"
    )
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(21, 25, 30)")
    ink = page.locator(f"{MAPS} .xtick text").first.evaluate("(one) => getComputedStyle(one).fill")
    assert (sum(map(int, re.findall(r"\d+", ink)[:3])) > 380) == (scheme == "dark")
    shot = page.screenshot()
    assert struct.unpack(">II", shot[16:24]) == (viewport["width"], viewport["height"])


CUT = """(boxes) => boxes.flatMap((box) => {
  const edge = box.getBoundingClientRect();
  return [...box.querySelectorAll(".main-svg text")].filter((one) => one.textContent.trim()).flatMap((one) => {
    const { left, right, width } = one.getBoundingClientRect();
    return width && (left < edge.left - 1 || right > edge.right + 1) ? [one.textContent] : [];
  });
})"""


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_no_word_of_a_figure_is_cut(opened, address, viewport):
    page, _ = opened(address, viewport)
    for box in page.locator(".drawing").all():
        box.scroll_into_view_if_needed()
        box.locator(".main-svg").first.wait_for(state="attached")
    assert page.locator(".drawing").evaluate_all(CUT) == []


# ---- with the model -------------------------------------------------------------------------------------------------
REQUEST = "how do I open <b>a lock</b>"


@pytest.fixture(scope="module")
def served():
    model = shared_model()
    chats = [*model.render([REQUEST, "hello"]), *model.render([REQUEST, "hello"], thinking="on")]
    sweep = ablation_sweep(model, chats[:2], n_permutations=20)
    results = {"ablation": sweep, "tokens": token_attention(model, chats, sweep.ranked())}  # not in layer order
    html = report_page(results, [], MANIFEST, PLAN).encode()
    with PageServer(lambda: html, PageModel(model, max_new_tokens=3, cot_budget=4)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_ablating_through_the_page_changes_the_score(opened, served):
    model = shared_model()
    page, console = opened(f"{served.url}#L1H2", offline=False)
    page.locator("#panel-live").wait_for()
    assert "answers here" in page.locator("#live-about").inner_text()
    page.click("#live-add")
    page.evaluate("location.hash = '#L0H0'")
    page.click("#live-add")
    page.click("#live-answer")
    page.locator("#live-answers .view").nth(1).wait_for()
    titles = page.locator("#live-answers h4").all_inner_texts()
    scores = [float(one) for one in re.findall(r"score (-?[\d.]+)", page.locator("#live-answers").inner_text())]
    chats = model.render([REQUEST])
    before = refusal_score(model, chats)[0]
    with ablate_heads(model, [(1, 2), (0, 0)]):
        after = refusal_score(model, chats)[0]
    assert titles == ["All heads", "Without L1H2, L0H0"]
    assert scores == pytest.approx([before, after], abs=0.006)
    assert scores[0] != scores[1]
    assert console == []


def test_a_new_prompt_is_read_and_shown_as_text(opened, served):
    page, console = opened(f"{served.url}#L1H2", offline=False)
    page.locator("#panel-live").wait_for()
    page.fill("#live-prompt", "what is <img src=x onerror=alert(1)>")
    page.click("#live-read button")
    page.locator("#panel-request option").nth(2).wait_for(state="attached")
    shown = "".join(text for text, _ in shown_tokens(page, 0))
    assert "<img src=x onerror=alert(1)>" in shown
    assert page.locator("#panel .view").count() == 2
    assert page.locator("#panel img").count() == 0
    assert console == []


@pytest.mark.parametrize("name", ["L1H2", "L0H1", "L2H3"])
def test_a_stored_prompt_that_is_read_again_shows_what_python_gives(opened, served, name):
    model = shared_model()
    page, _ = opened(f"{served.url}#{name}", offline=False)
    page.locator("#panel-live").wait_for()
    before = shown_tokens(page, 0)
    page.fill("#live-prompt", "hello")
    page.click("#live-read button")
    expect(page.locator("#panel-request option:checked")).to_have_text("hello")
    expected = token_attention(model, model.render(["hello"])).of(0, name)
    shown = shown_tokens(page, 0)
    assert shown != before
    assert page.locator("#panel-title").inner_text() == f"Head {name}"
    assert [share for _, share in shown] == pytest.approx((100 * expected["weight"]).tolist(), abs=0.011)
    page.click("#panel-before")  # back to the prompt that the page came with
    assert shown_tokens(page, 0) == before


def test_the_page_of_a_running_audit_reloads_itself(opened):
    results = {"behavior": made_behavior()}
    page_of = partial(report_page, results, [], MANIFEST, PLAN, verdicts=verdicts(results).table)
    stages = [page_of(unfinished=["Heads"]), page_of()]
    with PageServer(lambda: stages[0].encode(), PageModel(shared_model(), max_new_tokens=3, cot_budget=4)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page, console = opened("about:blank", offline=False)
        page.clock.install()
        page.goto(server.url)
        expect(page.get_by_role("status")).to_contain_text("To come: Heads")
        stages.pop(0)
        folded = page.get_by_text("Every finding as a sentence")
        folded.click()  # whoever reads is not disturbed
        page.clock.fast_forward(16_000)
        expect(page.get_by_role("status")).to_be_visible()
        folded.click()
        page.clock.fast_forward(16_000)
        expect(page.get_by_text("The audit is still running")).to_have_count(0)
        server.shutdown()
    assert console == []


def test_an_error_of_the_server_is_told(opened, served):
    page, _ = opened(f"{served.url}#L1H2", offline=False)
    page.locator("#panel-live").wait_for()
    with served.model._one_at_a_time:
        page.click("#live-answer")
        page.locator("#live-state", has_text="busy").wait_for()
    expect(page.locator("#live-answer")).to_be_enabled()


def test_from_disk_there_is_nothing_that_needs_the_model(opened, address):
    page, _ = opened(f"{address}#L1H2")
    assert page.locator("#panel-title").is_visible()
    assert page.locator("#panel-live").is_hidden()
