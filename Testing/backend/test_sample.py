"""Sample data: the phantom is made offline, the Decathlon's archive is fetched from a server on this machine."""

import functools
import hashlib
import http.server
import json
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from genseg.errors import InputFaults, RunFailed
from genseg.events import EventLog, Warning_
from genseg.phantom import LABELS, SIZE, make_body
from genseg.sample import TASK, TEST_CASES, sample


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    events = []
    begin = time.process_time()
    path = sample("phantom", tmp_path_factory.mktemp("köln data") / "phantom", EventLog([events.append]))
    return path, events, time.process_time() - begin


def read(path: Path) -> sitk.Image:
    return sitk.ReadImage(str(path))


def test_the_phantom_study_lists_files_that_exist_and_says_that_it_is_no_patient(phantom):
    path, events, seconds = phantom
    content = json.loads(path.read_text(encoding="utf-8"))
    assert "PHANTOM" in content["name"] and "not a patient" in content["description"]
    assert any(isinstance(event, Warning_) and event.code == "phantom" for event in events)
    assert (len(content["training"]), len(content["test"]), len(content["unlabeled"])) == (9, 6, 3)
    ids = [case["id"] for part in ("training", "test", "unlabeled") for case in content[part]]
    assert ids == [f"phantom_{i:02d}" for i in range(1, 19)]
    for case in content["training"] + content["test"]:
        image, label = read(path.parent / case["image"]), read(path.parent / case["label"])
        assert image.GetSize() == label.GetSize() == SIZE[::-1]
        assert image.GetSpacing() == label.GetSpacing() and image.GetOrigin() == label.GetOrigin()
        assert set(np.unique(sitk.GetArrayViewFromImage(label))) == {0, *LABELS}
    assert all("label" not in case for case in content["unlabeled"])
    assert seconds < 60, "about 10 s on an idle core; generous, for a loaded one"


def test_the_same_seed_gives_the_same_phantom_and_another_seed_another():
    first, again, other = make_body(3), make_body(3), make_body(4)
    assert np.array_equal(first.image, again.image) and np.array_equal(first.label, again.label)
    assert np.mean(first.label != other.label) > 0.02


def test_no_pair_of_thresholds_finds_an_organ_of_the_phantom():
    body = make_body(1)
    levels = np.quantile(body.image, np.linspace(0.3, 1, 36))
    for value in LABELS:
        truth = body.label == value
        best = 0.0
        for i, low in enumerate(levels):
            for high in levels[i + 1 :]:
                found = (body.image >= low) & (body.image <= high)
                best = max(best, 2 * np.sum(found & truth) / (found.sum() + truth.sum()))
        assert 0 < best < 0.75, f"{LABELS[value]}: a threshold reaches Dice {best:.2f}"


def test_every_organ_of_the_phantom_has_a_plausible_volume():
    for seed in range(1, 7):
        ml = np.bincount(make_body(seed).label.ravel()) * 0.064
        assert 250 < ml[1] < 800 and 50 < ml[2] < 250 and 10 < ml[3] < 150


def test_a_folder_in_use_is_left_as_it_is(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputFaults) as caught:
        sample("phantom", tmp_path, EventLog())
    assert caught.value.faults[0].code == "out_in_use" and "--out" in caught.value.faults[0].remedy
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_an_unknown_sample_is_a_fault_that_names_the_known_ones(tmp_path):
    with pytest.raises(InputFaults) as caught:
        sample("brain", tmp_path / "out", EventLog())
    assert "phantom" in caught.value.faults[0].remedy and not (tmp_path / "out").exists()


@pytest.fixture
def archive(data, tmp_path):
    """The Decathlon's archive in small: its layout, its own dataset.json, some of its own scans."""
    source = data / "hippocampus"
    served = tmp_path / "served"
    served.mkdir()
    images = sorted((source / "images").glob("*.nii.gz"))[:28]
    training, test = images[:25], images[25:]
    content = {
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [{"image": f"./imagesTr/{p.name}", "label": f"./labelsTr/{p.name}"} for p in training],
        "test": [f"./imagesTs/{p.name}" for p in test],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with tarfile.open(served / f"{TASK}.tar", "w") as tar:
        tar.add(tmp_path / "dataset.json", f"{TASK}/dataset.json")
        for path in training:
            tar.add(path, f"{TASK}/imagesTr/{path.name}")
            tar.add(source / "labels" / path.name, f"{TASK}/labelsTr/{path.name}")
            tar.add(tmp_path / "dataset.json", f"{TASK}/imagesTr/._{path.name}")
        for path in test:
            tar.add(path, f"{TASK}/imagesTs/{path.name}")
    return served / f"{TASK}.tar"


@pytest.fixture
def server(archive, monkeypatch):
    """Serves the archive over HTTP and points MONAI's address and checksum at it."""
    from monai.apps.datasets import DecathlonDataset

    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(archive.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        md5 = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
        monkeypatch.setitem(DecathlonDataset.resource, TASK, f"http://127.0.0.1:{httpd.server_port}/{TASK}.tar")
        monkeypatch.setitem(DecathlonDataset.md5, TASK, md5)
        yield httpd
        httpd.shutdown()


def test_the_downloaded_hippocampus_gets_a_test_set_with_labels_apart_from_training(server, tmp_path):
    events = []
    path = sample("hippocampus", tmp_path / "hippo campus", EventLog([events.append]))
    content = json.loads(path.read_text(encoding="utf-8"))
    assert len(content["test"]) == TEST_CASES and len(content["training"]) == 5 and len(content["unlabeled"]) == 3
    training, test = ({case["image"] for case in content[part]} for part in ("training", "test"))
    assert not training & test and not (training | test) & set(content["unlabeled"])
    for case in content["training"] + content["test"]:
        assert Path(case["image"]).name == Path(case["label"]).name
        assert read(path.parent / case["image"]).GetSize() == read(path.parent / case["label"]).GetSize()
    assert all((path.parent / image).is_file() for image in content["unlabeled"])
    assert not list(path.parent.rglob("._*")) and not list(path.parent.rglob("*.tar"))
    assert "CC BY-SA 4.0" in next(e.message for e in events if isinstance(e, Warning_)), "the licence is said"
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".part")] == []


def test_a_download_that_was_changed_on_the_way_is_refused_and_leaves_nothing(server, archive, tmp_path):
    damaged = bytearray(archive.read_bytes())
    damaged[5000] ^= 1
    archive.write_bytes(damaged)
    with pytest.raises(RunFailed) as caught:
        sample("hippocampus", tmp_path / "out", EventLog())
    assert caught.value.code == "bad_download"
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".part*"))


def test_without_a_network_the_phantom_is_named_as_the_remedy_and_nothing_is_left(tmp_path, monkeypatch, capfd):
    from monai.apps.datasets import DecathlonDataset

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(DecathlonDataset.resource, TASK, f"http://127.0.0.1:9/{TASK}.tar")  # nobody listens there
    with pytest.raises(RunFailed) as caught:
        sample("hippocampus", tmp_path / "out", EventLog())
    assert caught.value.code == "no_network" and "genseg sample phantom" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == "", "stdout belongs to the events"
