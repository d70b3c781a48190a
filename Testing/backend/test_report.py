"""The report on run folders built from real scans, read as text and opened in a headless browser."""

import base64
import html
import io
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from run_builder import Recipe, build_run

from genseg import events
from genseg.imageio import read_label, read_scan, write_label
from genseg.labels import LabelTable
from genseg.report import build_report
from genseg.report.build import LIMIT
from genseg.report.cards import telling_pairs
from genseg.report.pictures import make_views
from genseg.report.reading import RunView, read_run
from genseg.report.sections import settings_section
from genseg.runfolder import RunFolder, read_json, write_json
from genseg.settings import Method, Settings

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=4000",
    "--dump-dom",
)
PROBE = """<script>addEventListener("load", () => {
const all = (q, f) => [...document.querySelectorAll(q)].map(f), out = document.createElement("pre");
out.id = "probe";
out.textContent = JSON.stringify({
  images: all("img", i => [i.naturalWidth, i.clientWidth, i.clientHeight, i.alt]),
  headings: all("h1, h2", h => h.textContent),
  rows: all("#metrics tbody tr", r => [...r.children].map(c => c.textContent)),
  fetched: performance.getEntriesByType("resource").map(r => r.name).filter(n => !n.startsWith("data:")),
  wide: document.documentElement.scrollWidth, seen: innerWidth, ground: getComputedStyle(document.body).backgroundColor,
  broken: all("a", a => a.getAttribute("href")).filter(h => !document.getElementById(h.slice(1))),
  curves: all(".chart svg", s => [s.getBoundingClientRect().height, s.getAttribute("aria-label")]),
});
document.body.append(out); });</script>"""


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """browse(page, width, dark): what a browser made of the page."""
    wanted = os.environ.get("GENSEG_BROWSER")
    browser = wanted or next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        reason = f"a browser is needed to open the report: none of {', '.join(BROWSERS)} is installed"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)

    def browse(page: Path, width: int = 1200, dark: bool = False) -> dict:
        copy = tmp_path_factory.mktemp("page") / "probe.html"
        copy.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
        scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            command = [
                browser,
                *FLAGS,
                *scheme,
                f"--user-data-dir={profile}",
                f"--window-size={width},900",
                copy.as_uri(),
            ]
            done = subprocess.run(command, capture_output=True, timeout=120)
        found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout.decode("utf-8"), re.DOTALL)
        assert found, done.stderr.decode("utf-8", "replace")[-2000:]
        return json.loads(html.unescape(found[1]))

    return browse


@pytest.fixture(scope="module")
def volumes(data, tmp_path_factory) -> RunFolder:
    """A 3D run with 14 predicted scans and 15 pairs: more than the page shows."""
    run = build_run(
        tmp_path_factory.mktemp("läufe") / "run 3D", data, Recipe("hippocampus", test=13, unlabelled=1, pairs=15)
    )
    build_report(run)
    return run


@pytest.fixture(scope="module")
def photos(data, tmp_path_factory) -> RunFolder:
    run = build_run(tmp_path_factory.mktemp("photos"), data, Recipe("kvasir", labelled=5, test=3, physical=False))
    build_report(run)
    return run


def text_of(run: RunFolder) -> str:
    return run.report.read_text(encoding="utf-8")


def cards(page: str) -> list[str]:
    return re.findall(r"<article.*?</article>", page, re.DOTALL)


def test_the_page_is_self_contained(volumes, photos):
    for run in (volumes, photos):
        page = text_of(run)
        assert "<script" not in page and "@import" not in page and '<link rel="stylesheet' not in page
        for address in re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')\s>]+)', page):
            assert address.startswith(("data:", "#")), address
        assert not re.search(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", re.sub(r"base64,[\w+/=]+", "", page), re.IGNORECASE)
        assert len(page.encode("utf-8")) < LIMIT
        pictures = re.findall(r'src="data:image/(png|jpeg);base64,([^"]+)" alt="([^"]+)"', page)
        assert pictures
        for kind, content, alt in pictures:
            picture = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
            picture.load()
            assert picture.format == kind.upper() and max(picture.size) >= 300 and len(alt) > 10
            assert np.array(picture).std() > 5, f"'{alt}' is one flat colour"


@pytest.mark.parametrize("width", [1200, 500])
@pytest.mark.parametrize("kind", ["volumes", "photos"])
def test_a_browser_draws_every_picture_and_asks_for_nothing(kind, width, browse, request):
    run = request.getfixturevalue(kind)
    seen = browse(run.report, width)
    assert seen["fetched"] == [] and seen["broken"] == []
    assert len(seen["images"]) == text_of(run).count("<img")
    assert all(natural > 0 and w > 40 and h > 10 and alt for natural, w, h, alt in seen["images"])
    assert seen["wide"] <= seen["seen"], "the page scrolls sideways"
    assert seen["headings"][0].endswith(read_json(run.study)["name"])
    wanted = [
        "Look at this first",
        "What the run warned of",
        "Outlines made by the model",
        "Synthetic scans beside real ones",
    ]
    wanted += ["How close the outlines are to the reference", "How the training went", "Settings, plan and versions"]
    assert seen["headings"][1:] == wanted
    assert len(seen["curves"]) >= 5 and all(height > 100 or height == 0 for height, _ in seen["curves"])


def test_the_page_follows_the_dark_scheme(volumes, browse):
    light, dark = (browse(volumes.report, dark=dark)["ground"] for dark in (False, True))
    level = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in (light, dark)]
    assert level[0] > 200 and level[1] < 60


def test_the_tables_hold_the_numbers_of_metrics_json(volumes, browse):
    rows = browse(volumes.report)["rows"]
    metrics = read_json(volumes.metrics)["test"]

    def written(scores: dict) -> list[str]:
        return [f"{scores['dice']:.3f}", f"{scores['iou']:.3f}", f"{scores['hd95_mm']:.1f}", f"{scores['nsd']:.3f}"]

    expected = [[name, *written(scores)] for name, scores in metrics["labels"].items()]
    expected.append(["mean of all structures", *written(metrics["mean"])])
    for case in metrics["cases"]:
        expected += [[case["case"], name, *written(scores)] for name, scores in case["labels"].items()]
    assert rows == expected
    assert f"the mean Dice is {metrics['mean']['dice']:.2f}" in text_of(volumes)


def test_the_least_sure_scans_come_first_and_hidden_ones_are_counted(volumes):
    page = text_of(volumes)
    entries = read_json(volumes.predictions_index)["cases"]
    ordered = sorted(entries, key=lambda entry: -entry["uncertainty"])
    shown = [re.search("<h3>(.*?)</h3>", card)[1] for card in cards(page) if "prediction" in card[:60]]
    assert shown == [entry["case"] for entry in ordered[:12]]
    assert "12 of 14 scans shown" in page and "12 pairs shown, 3 more in the folder synthetic" in page
    assert f'<a href="#prediction-1">{ordered[0]["case"]}</a>' in page
    everything = re.search(r"All 14 scans</summary>(.*?)</details>", page, re.DOTALL)[1]
    assert all(entry["case"] in everything for entry in entries)


def test_a_card_holds_volumes_and_dice_of_its_scan(volumes):
    scores = {case["case"]: case["labels"] for case in read_json(volumes.metrics)["test"]["cases"]}
    table = read_run(volumes).table
    for entry in read_json(volumes.predictions_index)["cases"]:
        card = next((card for card in cards(text_of(volumes)) if f"<h3>{entry['case']}</h3>" in card), None)
        if card is None or entry["split"] != "test":
            continue
        numbers = re.findall(r'class="number">([^<]*)<', card)
        case = next(case for case in read_run(volumes).study.test if case.id == entry["case"])
        truth, _ = read_label(case.label, table)
        for row, label in enumerate(table.structures):
            ml, reference, dice = numbers[3 * row : 3 * row + 3]
            assert float(ml) == pytest.approx(entry["volumes_ml"][label.name], abs=0.006)
            assert float(reference) == pytest.approx(np.sum(truth == row + 1) / 1000, abs=0.006)  # 1 mm voxels
            assert float(dice) == pytest.approx(scores[entry["case"]][label.name]["dice"], abs=0.006)


def test_flagged_pairs_say_why_in_words(volumes):
    page = text_of(volumes)
    copies = [card for card in cards(page) if "nearly copies a patient" in card]
    assert (
        len(copies) == 1
        and "0.97 of 1, almost a copy of this scan" in copies[0]
        and "left out of training" in copies[0]
    )
    assert "1 synthetic image nearly copies a patient&#x27;s scan: treat as patient data." in page
    poor = [card for card in cards(page) if "image and mask do not match well enough" in card]
    assert poor and all("used for training" not in card for card in poor)


def test_a_pair_that_the_user_excluded_says_so(data, tmp_path):
    run = build_run(tmp_path / "run", data, Recipe("hippocampus", labelled=2, test=1, unlabelled=0, pairs=4))
    pairs = read_json(run.synthetic_index)["pairs"]
    pairs = [pair | {"style": "hippocampus_014", "near_copy": False, "used": True} for pair in pairs]
    write_json(run.synthetic_index, {"pairs": pairs})
    write_json(run.exclusions, [{"from_step": 50, "pairs": [[pairs[0]["source"], "hippocampus_014"]]}])
    build_report(run)
    told = cards(run.report.read_text(encoding="utf-8"))
    excluded = [card for card in told if "pairs like this are left out of training: you excluded them" in card]
    used = [card for card in told if "pairs like this are used in training" in card]
    assert len(excluded) == len(used) == 2
    assert not any("match well enough" in card for card in told)


def test_flagged_pairs_stay_in_sight_among_many():
    pairs = [{"image": f"{i}", "step": i, "near_copy": i == 2, "used": i != 2} for i in range(50)]
    chosen = telling_pairs(pairs, 12)
    assert len(chosen) == 12 and chosen[0]["step"] == 2 and chosen[1]["step"] == 49


def test_slices_lie_as_radiologists_look_at_them(data, tmp_path):
    """A block to the left, in front and above in the file's own physical space must appear right, up and left."""
    table = LabelTable.from_names({1: "block"})
    path = next(iter(sorted((data / "hippocampus" / "images").glob("*.nii.gz"))))
    turned = tmp_path / "turned.nii.gz"
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "SAR"), str(turned))  # an unusual order of axes
    scan = read_scan([turned])
    labels = np.zeros(scan.array.shape[1:], np.uint8)
    z, _, x = labels.shape
    labels[z - 8 : z - 2, 2:8, x - 8 : x - 2] = 1
    write_label(labels, scan.geometry, table, tmp_path / "block.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "block.nii.gz"))
    voxels = np.argwhere(sitk.GetArrayFromImage(image))[:, ::-1].tolist()
    block = np.mean([image.TransformIndexToPhysicalPoint(voxel) for voxel in voxels], axis=0)
    middle = image.TransformContinuousIndexToPhysicalPoint([n / 2 for n in image.GetSize()])
    left, back, up = block - middle
    assert left > 0 and back < 0 and up > 0, "the file says: left, front, top"
    views = {view.plane: view for view in make_views(scan, read_label(tmp_path / "block.nii.gz", table)[0], None, None)}
    assert list(views) == ["axial", "coronal", "sagittal"]
    for plane, right in (("axial", True), ("coronal", True), ("sagittal", False)):
        view = views[plane]
        row, column = np.argwhere(view.labels).mean(axis=0) / view.labels.shape
        assert row < 0.5 and (column > 0.5) == right, plane
    assert views["axial"].edges == ("R", "L", "A", "P") and views["sagittal"].edges[:2] == ("A", "P")


def test_pictures_keep_the_true_proportions_of_anisotropic_scans(data, tmp_path):
    table = LabelTable.from_names({1: "a", 2: "b"})
    image = sitk.ReadImage(str(data / "hippocampus" / "images" / "hippocampus_001.nii.gz"))
    label = sitk.ReadImage(str(data / "hippocampus" / "labels" / "hippocampus_001.nii.gz"))
    for item, name in ((image, "image"), (label, "label")):
        item.SetSpacing((0.8, 0.8, 3.0))
        sitk.WriteImage(item, str(tmp_path / f"{name}.nii.gz"))
    scan = read_scan([tmp_path / "image.nii.gz"])
    views = make_views(scan, read_label(tmp_path / "label.nii.gz", table)[0], None, None)
    coronal = next(view for view in views if view.plane == "coronal")
    assert coronal.pixel == pytest.approx((3.0, 0.8))


def test_a_thin_slab_is_shown_by_three_slices_of_one_field_of_view(data):
    table = LabelTable.from_names({1: "rv", 2: "myo", 3: "lv"})
    path = sorted((data / "acdc" / "images").glob("*.nii.gz"))[0]
    scan = read_scan([path])
    labels, _ = read_label(data / "acdc" / "labels" / path.name, table)
    views = make_views(scan, labels, None, None)
    assert [view.plane for view in views] == ["axial"] * 3 and len({view.image.shape for view in views}) == 1
    assert all("slice" in view.note for view in views)


def test_colour_photos_stay_coloured_and_have_areas_for_volumes(photos):
    page = text_of(photos)
    assert "data:image/jpeg" in page and "of image" in page and "no physical size" in page
    assert ">ml<" not in page and "HD95, pixels" in page and 'class="edge' not in page
    picture = re.search(r"data:image/jpeg;base64,([^\"]+)", page)[1]
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(picture)))).astype(int)
    assert pixels.ndim == 3 and np.abs(pixels[..., 0] - pixels[..., 2]).mean() > 10


def test_sixty_labels_fold_up_and_stay_small(data, tmp_path):
    recipe = Recipe("torso_ct_mr", labelled=0, test=3, unlabelled=0, pairs=0, method="supervised")
    run = build_run(tmp_path, data, recipe)
    page = text_of(run) if build_report(run) else ""
    assert len(page.encode()) < LIMIT and "structures in this scan</summary>" in page
    assert re.search(r"Colours of the \d\d structures", page) and "Synthetic scans beside" not in page
    assert 'href="#pairs"' not in page


def test_only_test_scans_give_a_figure_of_how_good_the_outlines_are(data, volumes, tmp_path):
    """The Dice on held-out scans flatters: a study without labelled test scans gets no figure, and is told so."""
    run = build_run(tmp_path / "run", data, Recipe("hippocampus", labelled=2, test=0, unlabelled=1, pairs=0))
    write_json(run.metrics, {"validation": read_json(volumes.metrics)["test"]})
    build_report(run)
    page = text_of(run)
    assert "there is no figure for how good the outlines are" in page
    assert "mean Dice" not in page.split('id="curves"')[0] and 'id="metrics"' not in page


def test_an_empty_run_folder_makes_a_page_that_says_so(tmp_path):
    build_report(RunFolder(tmp_path))
    page = text_of(RunFolder(tmp_path))
    assert "Not finished" in page and "Research use only" in page and "<img" not in page


def test_a_killed_and_resumed_run_counts_its_time_once_and_names_the_torn_line(tmp_path):
    run, log = RunFolder(tmp_path), events.EventLog()
    log.open(run.events)
    for resumed, begin in ((False, 100.0), (True, 1000.0)):
        log.emit(events.Started(version="1", run="r", method="genseg", device="cpu", resumed=resumed, time=begin))
        for step, value in ((1, 0.9), (2, 0.8 - begin / 10000)):
            log.emit(events.Metric(name="loss/real", value=value, step=step, time=begin + 10 * step))
    log.close()
    with run.events.open("a", encoding="ascii") as file:
        file.write('{"event": "metr')
    view = read_run(run)
    assert view.seconds == 40 and view.status is None
    assert view.curves["loss/real"] == [(1, 0.9), (2, pytest.approx(0.7))], "the later value of a step counts"
    build_report(run)
    assert "1 line of events.jsonl" in text_of(run) and "Not finished" in text_of(run) and "40 s" in text_of(run)


def test_a_stopped_run_and_a_failed_run_are_told_apart(tmp_path):
    for status, said in ((3, "Stopped on request"), (1, "Failed"), (0, "Finished")):
        run, log = RunFolder(tmp_path / str(status)), events.EventLog()
        log.open(run.events)
        log.emit(events.Started(version="1", run="r", method="genseg", device="cpu"))
        if status == 1:
            log.emit(events.Error(code="diverged", message="The losses are not finite.", remedy="Train again."))
        log.emit(events.Finished(status=status, seconds=1))
        log.close()
        build_report(run)
        assert f">{said}" in text_of(run)
        assert ("The losses are not finite. Train again." in text_of(run)) == (status == 1)


def test_names_from_the_study_are_shown_as_text_and_never_as_html(volumes, tmp_path):
    run = RunFolder(shutil.copytree(volumes.path, tmp_path / "copy"))
    study = read_json(run.study)
    study["name"] = '<script>alert(1)</script> & "Größe" $title'
    study["labels"]["labels"][1]["name"] = "<b>anterior</b>"
    write_json(run.study, study)
    build_report(run)
    page = text_of(run)
    assert "<script" not in page and "<b>anterior" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;Größe&quot; $title" in page


def test_files_that_are_gone_or_broken_are_named_and_the_page_stands(volumes, tmp_path):
    run = RunFolder(shutil.copytree(volumes.path, tmp_path / "copy"))
    index = read_json(run.predictions_index)
    first = max(index["cases"], key=lambda entry: entry["uncertainty"])
    first["images"] = [str(tmp_path / "moved.nii.gz")]
    write_json(run.predictions_index, index)
    run.metrics.write_text("{", encoding="utf-8")
    (run.synthetic / read_json(run.synthetic_index)["pairs"][14]["image"]).write_bytes(b"no image")
    build_report(run)
    page = text_of(run)
    assert page.count("No picture: the files cannot be read any more") == 2
    assert "moved.nii.gz" in page and "Could not be read for this page: metrics.json." in page


@pytest.mark.parametrize("method", get_args(Method))
def test_the_settings_name_a_generator_only_where_the_method_has_one(method, tmp_path):
    settings = Settings(dataset=Path("study"), out=Path("run"), method=method, segmenter="segresnet")
    shown = str(settings_section(RunView(RunFolder(tmp_path), settings=settings.model_dump(mode="json"))))
    assert ("spade" in shown) == settings.generates and "segresnet" in shown
