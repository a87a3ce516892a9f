"""What is in a report: the model's own figures, the pictures by their names, and nothing that could break out."""

import base64
import hashlib
import html.parser
import io
import json
import re
import shutil

import pytest
from PIL import Image
from reports import BACKBONE, HOSTILE_FILE, SCRIPT, Beacon, data_of, hostile_dataset, reported

import headstart
from headstart.classify.model import load_model
from headstart.classify.pages.pictures import CHANGED
from headstart.classify.pages.report import report
from headstart.errors import OutputError, UsageError

LABEL = Beacon(1).label


@pytest.fixture(scope="module")
def made(samples, tmp_path_factory):
    """A report on a dataset with hostile names: folder, report, its text."""
    folder = tmp_path_factory.mktemp("hostile")
    data = hostile_dataset(samples, folder / "pictures", LABEL)
    return folder, *reported(data, folder)


class Tags(html.parser.HTMLParser):
    """The elements of a page with their attributes, and the text between."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text, self.open = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def test_the_verdict_is_the_score_that_evaluate_gives(made):
    folder, written, page = made
    found = headstart.evaluate(folder / "model", cache=folder / "cache")
    text = page.replace("\u00a0", " ")
    assert f"Right on {100 * found.scores['accuracy']:.1f} % of {found.scores['n']} validation pictures" in text
    assert f"(95 % interval {100 * found.scores['low']:.1f} % to {100 * found.scores['high']:.1f} %)" in text
    assert written.verdict.startswith("Right on")
    assert written.summary()["bytes"] == (folder / "report.html").stat().st_size == written.bytes


def test_cells_hold_the_pictures_that_evaluate_counts(made):
    folder, _, page = made
    found = headstart.evaluate(folder / "model", cache=folder / "cache")
    data = json.loads(data_of(page))
    table = found.scores["confusion"]
    counts = [table[row][column] for row in range(2) for column in range(2)]
    assert [data["cells"].get(str(number), {"count": 0})["count"] for number in range(4)] == counts
    for number, cell in data["cells"].items():
        assert len(cell["rows"]) == cell["count"]
        labels = {data["rows"][str(row)][1] for row in cell["rows"]}
        assert labels == {found.classes[int(number) // 2]}
        wrong = int(number) // 2 != int(number) % 2
        answers = {data["rows"][str(row)][2] for row in cell["rows"]}
        assert answers == ({found.classes[int(number) % 2]} if wrong else {""})
    buttons = [attributes for attributes in Tags(page).all("button") if "data-cell" in attributes]
    assert len(buttons) == sum(count > 0 for count in counts)


def test_pictures_are_those_of_the_dataset_and_small(made):
    folder, written, page = made
    data = json.loads(data_of(page))
    assert len(data["pictures"]) == written.pictures == 85 and written.missing == 0 and not data["missing"]
    for number, content in list(data["pictures"].items())[:10]:
        image = Image.open(io.BytesIO(base64.b64decode(content)))
        assert image.format == "WEBP" and max(image.size) == 128
        original = Image.open(folder / "pictures" / data["rows"][number][0])
        assert image.width / image.height == pytest.approx(original.width / original.height, rel=0.02)


def test_hostile_names_are_text_wherever_they_stand(made):
    _, _, page = made
    tags = Tags(page)
    assert {tag for tag, _ in tags.found} & {"script", "img"} == {"script", "img"}
    assert len(tags.all("script")) == 2, "the page's own two"
    for attributes in tags.all("img"):
        assert set(attributes) <= {"data-picture", "alt", "width", "height"}, "no source, no handler"
    for tag, attributes in tags.found:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        assert not any("127.0.0.1" in (value or "") for name, value in attributes.items() if name in ("src", "href"))
    text = "".join(tags.text)
    assert SCRIPT in text and LABEL in text
    assert HOSTILE_FILE in json.loads(data_of(page))["rows"]["0"][0]
    assert "49" not in re.findall(r"\{\{(.*?)\}\}", text), "no template is run on names"
    assert "<" not in data_of(page) and ">" not in data_of(page)


def test_the_policy_lets_nothing_in_but_the_pages_own_script_and_style(made):
    _, _, page = made
    tags = Tags(page)
    policy = next(a["content"] for a in tags.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'" and rules["img-src"] == "data:"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"


def test_what_is_odd_is_shown(made):
    folder, _, page = made
    assert "1 group of copies are in train and in another split" in page.replace("\u00a0", " ")
    copies = page[page.index('<section id="copies"') : page.index('<section id="outliers"')]
    assert "twin.jpg" in copies and "across splits" in copies
    labels = page[page.index('<section id="labels"') : page.index('<section id="copies"')]
    assert "looks like" in labels
    model = load_model(folder / "model")
    assert model.scores["curve"]["verdict"][1:] in page and '<section id="curve"' in page
    few = model.scores["shots"]["points"]
    shown = page[page.index('<section id="shots"') : page.index('<section id="made"')].replace("\u00a0", " ")
    for point in (few[0], few[-1]):
        assert f"{100 * point['mean']:.1f} % ({100 * point['low']:.1f} % to {100 * point['high']:.1f} %) with" in shown
    assert "<svg " in shown and 'href="#shots"' in page
    assert "headstart fit-head" in page and model.training["created"] in page


def test_a_picture_that_changed_or_is_gone_is_named_and_not_shown(samples, tmp_path):
    data = hostile_dataset(samples, tmp_path / "pictures", LABEL, per_class=(12, 6))
    headstart.extract(data, backbone=BACKBONE, cache=tmp_path / "cache")
    model = headstart.fit_head(data, cache=tmp_path / "cache", out=tmp_path / "model").out
    gone, other = tmp_path / "pictures" / "ants-val-01 & <b>.jpg", tmp_path / "pictures" / "ants-val-02 & <b>.jpg"
    gone.unlink()
    shutil.copyfile(tmp_path / "pictures" / "ants-val-03 & <b>.jpg", other)
    written = report(model, cache=tmp_path / "cache", out=tmp_path / "report.html")
    assert written.missing == 2
    found = json.loads(data_of((tmp_path / "report.html").read_text()))
    reasons = {found["rows"][number][0]: reason for number, reason in found["missing"].items()}
    assert reasons == {gone.name: "not found", other.name: CHANGED}
    assert "2 more only by name" in written.lines()[1]


def test_a_report_is_not_written_over_something(made, tmp_path):
    folder, _, page = made
    with pytest.raises(OutputError, match="is there already; pass --overwrite"):
        report(folder / "model", out=folder / "report.html", cache=folder / "cache")
    with pytest.raises(UsageError, match=r"must name a file that ends in \.html"):
        report(folder / "model", out=tmp_path / "report.png", cache=folder / "cache")
    with pytest.raises(UsageError, match="--projection must be one of pca, umap, and is 'tsne'"):
        report(folder / "model", out=tmp_path / "r.html", cache=folder / "cache", projection="tsne")
    assert (folder / "report.html").read_text() == page


def test_reports_are_the_same_twice(made, tmp_path):
    folder, _, page = made
    report(folder / "model", out=tmp_path / "again.html", cache=folder / "cache")
    assert (tmp_path / "again.html").read_text() == page
