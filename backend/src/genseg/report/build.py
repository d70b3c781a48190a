"""Put the page together and write it."""

import string
from datetime import datetime
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from genseg import __version__
from genseg.events import Warning_
from genseg.report.html import Html, join, tag
from genseg.report.reading import RunView, read_run
from genseg.report.sections import curves_section, metrics_section, pairs_section, predictions_section, settings_section
from genseg.report.summary import RESEARCH_ONLY, status_of, story, summary, warnings
from genseg.runfolder import RunFolder, replacing

SHOWN = (12, 8, 5, 3)  # pairs and predictions; the next number is taken where the page grows beyond LIMIT
LIMIT = 6_000_000  # bytes


def build_report(run: RunFolder, status: int | None = None) -> Path:
    """Write report.html from whatever parts the run folder has, and return its path.

    `status`: the exit status of a run that ends now and could not yet say so in its events.

    The page needs no network and no script. Parts that are absent are left out; files that cannot be read are named.
    """
    view = read_run(run)
    view.ending = status
    for shown in SHOWN:
        page = _page(view, shown)
        if len(page.encode("utf-8")) <= LIMIT:
            break
    return _write(run, page)


def _page(run: RunView, shown: int) -> str:
    sections = {
        "Summary": summary(run),
        "Outlines": predictions_section(run, shown),
        "Synthetic scans": pairs_section(run, shown),
        "Metrics": metrics_section(run),
        "Training": curves_section(run),
        "Settings": settings_section(run),
    }
    ids = {"Outlines": "predictions", "Synthetic scans": "pairs", "Training": "curves"}
    present = {name: section for name, section in sections.items() if section}
    name = run.study.name if run.study else run.folder.path.name
    navigation = join(tag("a", n, href=f"#{ids.get(n, n.lower())}") for n in present)
    return _filled(run.folder, name, navigation, Html(Html("\n").join(present.values())))


def _filled(run: RunFolder, name: str, navigation: Html, content: Html) -> str:
    template = string.Template(resources.files("genseg.report").joinpath("template.html").read_text(encoding="utf-8"))
    footer = f"GenSeg {__version__}, {datetime.now():%Y-%m-%d %H:%M}. Run folder: {run.path.resolve()}"
    return template.substitute(
        title=join([f"GenSeg report: {name}"]), navigation=navigation, content=content, footer=join([footer])
    )


def _write(run: RunFolder, page: str) -> Path:
    with replacing(run.report) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return run.report


def build_reports(run: RunFolder, status: int | None = None) -> Path:
    """The report of every study of a run, and where there are several, one with links to them. → the run's own."""
    studies = run.saved_studies()
    for study in studies:
        build_report(study, status)
    if not run.several:
        return run.report
    view = read_run(run)
    view.ending = status
    return _write(run, _filled(run, f"{len(studies)} studies", Html(), _overview(view, studies)))


def _overview(run: RunView, studies: list[RunFolder]) -> Html:
    """Each study's figures and warnings, which lead to its own report, and what concerns them all."""
    cards, names = [], tuple(f"{folder.path.name}: " for folder in studies)
    for folder in studies:
        view = read_run(folder)
        link = tag("a", folder.path.name, href=quote(f"studies/{folder.path.name}/report.html"))
        cards.append(tag("div", tag("h3", link), tag("p", " ".join(story(view))), warnings(view), class_="card"))
    told = tag("p", "These studies were trained together, each with a model for its own structures.", class_="lead")
    run.log = [e for e in run.log if not (isinstance(e, Warning_) and e.message.startswith(names))]  # told by its study
    shown = tag("div", *cards, class_="cards")
    notice = tag("p", RESEARCH_ONLY, class_="notice")
    return tag("section", status_of(run), told, shown, warnings(run), notice)
