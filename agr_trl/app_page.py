"""The app's page in gradio: three tabs over what app.py answers.

Texts of products and queries reach the page through the templates of the report, which escape them
and write out control characters. What gradio shows itself (the choices of a list) is text to it,
and passes `visible` here.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr
import httpx  # gradio's client

from agr_trl.app import (
    CANDIDATES,
    MAX_CHARACTERS,
    ROWS_PER_PAGE,
    SHOWN_PRODUCTS,
    FinishedRun,
    cannot_serve,
)
from agr_trl.errors import UserError
from agr_trl.report import page_environment, report_content
from agr_trl.report_text import visible

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # none is fetched
MONOSPACE = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
MODELS: dict[str, Any] = {  # one answer of theirs at a time
    "concurrency_id": "models",
    "concurrency_limit": 1,
}
NARROW = 260  # pixels: on a phone two such boxes stand one below the other
MAX_QUERIES = 16  # that are written for a product at a time

TEMPLATE: Any = page_environment().get_template("app.html.j2").module


def launch(run: FinishedRun, host: str | None, port: int | None) -> None:
    """Serve the page until the process is stopped; nothing is fetched from or told to anybody.

    Raises `UserError` where it cannot be served, or not reached from this machine.
    """
    page = build_page(run)
    _bypass_proxy(host)
    try:
        page.launch(
            server_name=f"[{host.strip('[]')}]" if host and ":" in host else host,
            server_port=port,
            share=False,
            ssr_mode=False,
            footer_links=[],
            theme=_theme(),
            head=str(TEMPLATE.style()),
        )
    except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
        raise cannot_serve(host, port, error) from error


def _bypass_proxy(host: str | None) -> None:
    """Let this process reach its own page, which gradio asks for, where HTTP_PROXY is set.

    No proxy can reach it. Of the two names the environment has for the exceptions one hides the
    other, so both get them all.
    """
    names = ("NO_PROXY", "no_proxy")
    known = [part.strip() for name in names for part in os.environ.get(name, "").split(",")]
    hosts = [*known, "127.0.0.1", "localhost", (host or "").strip("[]")]
    for name in names:
        os.environ[name] = ",".join(dict.fromkeys(filter(None, hosts)))


def _theme() -> gr.themes.Base:
    """Return gradio's own theme with the fonts of the reader's system and the report's colours."""
    settings = {
        "body_background_fill": "var(--paper)",
        "body_text_color_subdued": "var(--muted)",
        "block_background_fill": "var(--card)",
        "block_border_color": "var(--rule)",
        "block_label_text_color": "var(--ink)",
        "block_title_text_color": "var(--ink)",
        "border_color_primary": "var(--rule)",
        "input_background_fill": "var(--paper)",
        "input_border_color": "var(--rule)",
        "slider_color": "var(--one)",
        "button_primary_background_fill": "#1f5fbf",  # under white text in both schemes
        "button_primary_background_fill_hover": "#194d9b",
    }
    dark = {f"{name}_dark": value for name, value in settings.items()}
    theme = gr.themes.Default(primary_hue="blue", font=FONTS, font_mono=MONOSPACE)
    return theme.set(color_accent="var(--one)", **settings, **dark)


def build_page(run: FinishedRun) -> gr.Blocks:
    """Return the page of a run: search, attack a product, rounds."""
    kind = "control" if run.record.is_control else "adversarial"
    title = f"{run.record.folder.resolve().name}: {kind} run"
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.HTML(TEMPLATE.heading(run.record))
        with gr.Tab("Search"):
            _search_tab(run)
        with gr.Tab("Attack"):
            _attack_tab(run)
        with gr.Tab("Rounds"):
            _rounds_tab(run)
    return page


def search_html(run: FinishedRun, query: str, blended: bool) -> str:
    """Return what three systems find for a query, side by side."""
    query = query[:MAX_CHARACTERS]  # the box's own limit binds only those who use the page
    found = run.search(query, blended)
    if not found["bm25"]:
        return TEMPLATE.message("No product shares a word with this query.")
    judged = run.judgements(query)
    facts = {
        "split": judged["split"].iloc[0] if len(judged) else "",
        "products": len(judged),
        "relevant": int((judged["label"] >= 0.5).sum()),
    }
    how = f"ranks BM25's {CANDIDATES}" + (", blended with BM25" if blended else "")
    score = "blend" if blended else "p"
    best = run.record.best_round
    names = {
        "bm25": ("BM25", "words only", "score"),
        "supervised": ("Supervised", f"R of round 0 {how}", score),
        "adversarial": ("Adversarial", f"R of round {best} {how}", score),
    }
    return TEMPLATE.search_results(names, found, facts, run.dataset.max_grade)


def _search_tab(run: FinishedRun) -> None:
    answer = _with_messages(partial(search_html, run))
    query = gr.Textbox(
        label="Query",
        placeholder="What would a customer type?",
        max_length=MAX_CHARACTERS,
        submit_btn="Search",
        elem_id="query",
    )
    blended = gr.Checkbox(
        label="Blend with BM25, by the weight that dev chose",
        value=run.can_blend,
        interactive=run.can_blend,
    )
    results = gr.HTML(
        TEMPLATE.message(f"The best {SHOWN_PRODUCTS} products of three systems, side by side."),
        elem_id="results",
        apply_default_css=False,
        render=False,
    )
    examples = run.example_queries()
    if examples:
        labels = [visible(example) for example in examples]
        shown = gr.Examples(
            [[example] for example in examples],
            query,
            label="Judged queries",
            example_labels=labels,
        )
        # Not Examples' own `fn`, which knows neither the checkbox nor that models take turns.
        shown.load_input_event.then(answer, [query, blended], results, **MODELS)
    results.render()
    gr.on([query.submit, blended.input], answer, [query, blended], results, **MODELS)


def _attack_tab(run: FinishedRun) -> None:
    titles, descriptions = (run.dataset.products[name] for name in ("title", "description"))

    def choices(text: str) -> list[tuple[str, int]]:
        return [(visible(titles.iloc[place])[:120], place) for place in run.find_products(text)]

    def offer(text: str) -> tuple[Any, str]:
        found = choices(text[:MAX_CHARACTERS])
        if not found:
            return gr.skip(), TEMPLATE.message("No product shares a word with this text.")
        return gr.Dropdown(choices=found, value=found[0][1]), card(found[0][1])

    def card(place: int) -> str:
        return TEMPLATE.product_card(titles.iloc[place], descriptions.iloc[place])

    @_with_messages
    def answer(place: int, count: int) -> str:
        return TEMPLATE.attack_results(run.attack(place, min(count, MAX_QUERIES)), CANDIDATES)

    start = choices("")
    with gr.Row():
        text = gr.Textbox(
            label="Find products, then Enter",
            max_length=MAX_CHARACTERS,
            min_width=NARROW,
            elem_id="find",
        )
        product = gr.Dropdown(
            start, value=start[0][1], label="Product", min_width=NARROW, elem_id="product"
        )
    shown = gr.HTML(card(start[0][1]), elem_id="card", apply_default_css=False)
    drawn = min(2 * run.run.loop.queries_per_product, MAX_QUERIES)
    count = gr.Slider(1, MAX_QUERIES, drawn, step=1, label="Queries to draw")
    button = gr.Button("Let the generator attack it", variant="primary", elem_id="attack")
    results = gr.HTML(elem_id="attacks", apply_default_css=False)
    text.submit(offer, text, [product, shown], show_progress="hidden")
    product.input(card, product, shown, show_progress="hidden")
    button.click(answer, [product, count], results, **MODELS)


def _rounds_tab(run: FinishedRun) -> None:
    content = report_content(run.record.folder)
    verdicts = run.verdicts()
    named = {"all": None, "accepted": [""], "not accepted": [key for key in verdicts if key]}
    named |= {words: [reason] for reason, words in verdicts.items() if reason}

    @_with_messages
    def answer(number: str, name: str, text: str, page: float | None) -> str:
        page_number = max(1, int(page or 1))
        rows, total = run.browse(numbers[number], named[name], text, page_number)
        return TEMPLATE.browsed(rows, total, (page_number - 1) * ROWS_PER_PAGE + 1)

    gr.HTML(TEMPLATE.round_metrics(content), apply_default_css=False)
    numbers = {"all": None} | {str(row["number"]): row["number"] for row in content["rounds"]}
    with gr.Row():
        number = gr.Dropdown(list(numbers), value="all", label="Round", elem_id="round")
        verdict = gr.Dropdown(list(named), value="all", label="Verdict", elem_id="verdict")
        text = gr.Textbox(label="In query or title", max_length=MAX_CHARACTERS, elem_id="contains")
        page = gr.Number(1, label="Page", precision=0, minimum=1, min_width=100)
    table = gr.HTML(answer("all", "all", "", 1), elem_id="written", apply_default_css=False)
    filters = [number, verdict, text]
    gr.on(
        [number.input, verdict.input, text.change],
        lambda *chosen: (answer(*chosen, 1), 1),
        filters,
        [table, page],
        trigger_mode="always_last",
        show_progress="hidden",
    )
    page.input(answer, [*filters, page], table, show_progress="hidden")


def _with_messages(answer: Callable[..., str]) -> Callable[..., str]:
    """Show a user's error as a sentence in the answer's place."""

    def shown(*values: Any) -> str:
        try:
            return answer(*values)
        except UserError as error:
            return TEMPLATE.message(f"{error}.")

    return shown
