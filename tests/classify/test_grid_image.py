"""Grids of pictures: what is drawn, where, in which colour, and that names from outside stay in their place."""

import errno
import io
import os

import numpy as np
import pytest
from PIL import Image

from headstart.classify import lettering
from headstart.classify.grid_image import BARE, FRAMED, GAP, MARGIN, SIDE, Block, Tile, as_png, draw_blocks
from headstart.classify.lettering import GREEN, GREY, INK, RED, Line, draw_line, fitted
from headstart.classify.prediction import Prediction
from headstart.classify.prediction_grid import PredictionGrid, plan_grid
from headstart.classify.result_file import check_file, check_no_input, write_file
from headstart.classify.thumbnails import shrunk, thumbnails
from headstart.errors import OutputError, UsageError

PIXELS = np.random.default_rng(0).integers(0, 256, (FRAMED, FRAMED, 3), dtype=np.uint8)
LIMIT = 10**8
HOSTILE = [
    "new\nline",
    "\x1b[31mred",
    "right\u202eleft",
    "e" + "\u0301" * 200,
    "<img src=x onerror=alert(1)>",
    os.fsdecode(b"caf\xe9"),
    "\U0001f41c\ufffe\ud800",
    "x" * 100_000,
    "",
    " ",
]


def where(image, colour):
    """Return rows and columns of the pixels of exactly this colour."""
    return np.argwhere((np.asarray(image) == colour).all(axis=2))


def written(line, width=150):
    """Draw a line in the middle of a page and return the page."""
    page = Image.new("RGB", (width + 200, 300), (255, 255, 255))
    draw_line(page, (100, 100), width, line)
    return np.asarray(page)


# Text


@pytest.mark.parametrize("text", HOSTILE)
def test_a_line_stays_in_its_box_whatever_the_name(text):
    page = written(Line(text, " 99 %", mark="wrong")).copy()
    page[100 : 100 + Line(text).height, 100:250] = 255
    assert (page == 255).all()


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_drawn_of_a_name_is_one_printable_line_that_fits(text):
    shown = fitted(text, 120, 14)
    assert shown.isprintable()
    assert lettering._width(shown, 14) <= 120


def test_a_name_that_fits_is_left_alone_and_a_longer_one_is_cut_with_an_ellipsis():
    assert fitted("golden retriever", 500, 14) == "golden retriever"
    cut = fitted("golden retriever " * 10, 100, 14)
    assert cut.endswith("…")
    assert "golden retriever".startswith(cut[:-1])
    assert lettering._width(cut[:-1] + "ever…", 14) > 100, "more of it would have fitted"


def test_what_stands_behind_a_name_is_not_cut():
    with_long, with_none = (written(Line(name, " 99.9 %"))[:, 210:] for name in ("x" * 300, ""))
    assert (with_long != 255).any()
    assert (with_none == 255).all()


def test_letters_that_no_font_has_are_escaped(monkeypatch):
    monkeypatch.setattr(lettering, "_of_the_system", lambda size: ())
    assert lettering._set_in("caf\u00e9 \u4e2d", 14)[1] == r"caf\xe9 \u4e2d"
    assert lettering._set_in("plain", 14)[1] == "plain"


def test_fonts_are_not_taken_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened = []
    truetype = lettering._of_the_system.__wrapped__
    monkeypatch.setattr("PIL.ImageFont.FreeTypeFont", lambda font, *rest: opened.append(os.fspath(font)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        truetype(14)
    assert all(os.path.isabs(name) for name in opened)  # noqa: PTH117


def test_right_and_wrong_differ_without_colour():
    right, wrong, bare = (written(Line("bees", colour=INK, mark=mark)) for mark in ("right", "wrong", ""))
    assert (right != wrong).any()
    assert (right != bare).any()
    assert (wrong != bare).any()


@pytest.mark.parametrize("colour", [INK, GREY, GREEN, RED])
def test_every_colour_of_text_has_enough_contrast_to_white(colour):
    # Relative luminance and contrast as WCAG 2.2 defines them; 4.5 is its level AA.
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(colour) / 255]
    luminance = np.dot([0.2126, 0.7152, 0.0722], linear)
    assert 1.05 / (luminance + 0.05) >= 4.5


# The grid


def test_a_picture_is_drawn_whole_and_unchanged():
    image = np.asarray(draw_blocks([Block((), [Tile(PIXELS[:, :50]), Tile(PIXELS)])], 5))
    assert image.shape == (2 * MARGIN + SIDE, 2 * MARGIN + 2 * SIDE + GAP, 3)
    left, top = MARGIN + (SIDE - 50) // 2, MARGIN + (SIDE - FRAMED) // 2
    assert (image[top : top + FRAMED, left : left + 50] == PIXELS[:, :50]).all()


def test_narrow_blocks_stand_beside_each_other_and_wide_ones_below():
    tile = Tile(PIXELS)
    narrow = draw_blocks([Block((Line("a"),), [tile])] * 5, 10)
    wide = draw_blocks([Block((Line("a"),), [tile] * 5)] * 2, 10)
    assert narrow.width == wide.width
    assert narrow.height < 2 * SIDE < wide.height


def test_a_long_row_is_broken():
    image = draw_blocks([Block((), [Tile(PIXELS)] * 7)], 3)
    assert image.size == (2 * MARGIN + 3 * SIDE + 2 * GAP, 2 * MARGIN + 3 * SIDE + 2 * GAP)


def test_a_white_picture_can_be_seen_on_the_page():
    white = np.full((BARE, BARE, 3), 255, np.uint8)
    image = np.asarray(draw_blocks([Block((), [Tile(white)])], 1))
    assert (image[MARGIN, MARGIN : MARGIN + SIDE] != 255).all()


def test_a_block_without_pictures_has_its_heading():
    image = draw_blocks([Block((Line("empty", colour=RED),), []), Block((), [Tile(PIXELS)])], 5)
    assert len(where(image, RED)) > 10


def test_the_png_holds_the_drawn_pixels():
    image = draw_blocks([Block((Line("a"),), [Tile(PIXELS)])], 5)
    with Image.open(io.BytesIO(as_png(image))) as read:
        assert read.format == "PNG"
        assert (np.asarray(read) == np.asarray(image)).all()


# Small views


def test_small_views_are_whole_upright_and_in_order(tmp_path):
    left_red = np.zeros((60, 120, 3), np.uint8)
    left_red[:, :60, 0] = 255
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(left_red).save(tmp_path / "turned.png", exif=turned)
    Image.fromarray(left_red).save(tmp_path / "plain.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "plain.png").read_bytes()[:60])
    names = ["turned.png", "cut.png", "absent.png", "plain.png"]
    made = list(thumbnails([os.fsencode(tmp_path / name) for name in names], 30, LIMIT))
    assert [view if isinstance(view, str) else view.shape for view in made] == [
        (30, 15, 3),
        "truncated",
        "not found",
        (15, 30, 3),
    ]
    assert made[0][3].tolist() == [[255, 0, 0]] * 15
    assert made[3][:, 3].tolist() == [[255, 0, 0]] * 15


def test_a_picture_over_the_limit_says_so(tmp_path):
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    (made,) = thumbnails([os.fsencode(tmp_path / "a.png")], 30, 9_999)
    assert "--max-pixels" in made


@pytest.mark.parametrize("shape", [(1, 1), (3, 3000), (3000, 3), (28, 28), (160, 159)])
def test_a_view_has_its_long_side_as_asked_for(shape):
    view = shrunk(np.full((*shape, 3), 77, np.uint8), 100)
    assert max(view.shape[:2]) == 100
    assert min(view.shape[:2]) >= 1
    assert (view == 77).all()


# Files


def test_a_file_is_not_replaced_unasked(tmp_path):
    there = tmp_path / "a.png"
    there.write_bytes(b"before")
    with pytest.raises(OutputError, match="--overwrite"):
        check_file(there, ".png")
    check_file(there, ".png", overwrite=True)
    (tmp_path / "b.png").symlink_to("nowhere")
    with pytest.raises(OutputError, match="no regular file"):
        check_file(tmp_path / "b.png", ".png", overwrite=True)
    with pytest.raises(OutputError, match="is a folder"):
        check_file(tmp_path.rename(tmp_path.with_suffix(".png")), ".png", overwrite=True)
    with pytest.raises(UsageError, match=r"ends in \.png"):
        check_file(tmp_path / "model.json", ".png")


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "a.png").write_bytes(b"before")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="disk full") as caught:
        write_file(tmp_path / "a.png", b"after")
    assert "--cache" not in str(caught.value)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.png", b"before")]


def test_a_result_never_replaces_a_picture_that_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "a.png"
    check_no_input(out, ["a.png"])  # nothing is there to be replaced
    out.write_bytes(b"")
    (tmp_path / "link").symlink_to(".")
    for same in ("a.png", "./a.png", "link/a.png", out):
        with pytest.raises(OutputError, match="one of the pictures"):
            check_no_input(out, [same])
    check_no_input(out, ["b.png", "other/a.png"])


# Predictions


@pytest.fixture
def pictures(tmp_path):
    """Nine grey pictures: three of ants, three of bees, three of nobody knows what."""
    for folder in ("ants", "bees", "new"):
        (tmp_path / folder).mkdir()
        for number in range(3):
            Image.new("RGB", (40, 30), (128, 128, 128)).save(tmp_path / folder / f"{number}.png")
    return tmp_path


def draw(folder, said, limit=64, out="grid.png", **fields):
    """Draw predictions, given as path -> label, and return what was drawn and the image."""
    rows = [Prediction(str(folder / name), label, 0.9, **fields) for name, label in said.items()]
    drawn = PredictionGrid(folder / out, limit).draw(rows, ("ants", "bees"))
    return drawn, Image.open(folder / out)


def frames(image):
    """Return the colours of the frames that are in an image."""
    return {colour for colour in (GREEN, RED, GREY) if len(where(image, colour)) >= SIDE * 4}


def test_right_and_wrong_predictions_are_green_and_red_and_others_neither(pictures):
    assert frames(draw(pictures, {"ants/0.png": "ants", "bees/0.png": "bees"}, out="right.png")[1]) == {GREEN}
    assert frames(draw(pictures, {"ants/0.png": "bees"}, out="wrong.png")[1]) == {RED}
    assert frames(draw(pictures, {"new/0.png": "bees"}, out="new.png")[1]) == {GREY}
    drawn, image = draw(pictures, {"ants/0.png": "ants", "bees/0.png": "ants", "new/0.png": "ants"})
    assert (drawn.right, drawn.wrong, drawn.shown) == (1, 1, 3)
    assert frames(image) == {GREEN, RED, GREY}


def test_each_picture_has_the_colour_of_its_own_prediction(pictures):
    _, image = draw(pictures, {"ants/0.png": "ants", "ants/1.png": "bees"})
    middle = MARGIN + SIDE + GAP // 2
    green, red = (where(image, colour)[:, 1] for colour in (GREEN, RED))
    assert (green < middle).sum() >= SIDE * 4
    assert (green > middle).sum() == 0
    assert (red > middle).sum() >= SIDE * 4


def test_titles_have_the_colour_of_the_verdict(pictures):
    _, image = draw(pictures, {"ants/0.png": "ants"})
    rows = where(image, GREEN)[:, 0]
    top_of_frame = min(row for row in rows if (rows == row).sum() >= SIDE)
    assert len(set(rows[rows < top_of_frame])) > 15, "heading and title stand above the frame"


def test_of_several_labels_a_folder_tells_no_truth(pictures):
    drawn, image = draw(pictures, {"ants/0.png": "ants|bees"}, labels=["ants", "bees"])
    assert (drawn.right, drawn.wrong) == (0, 0)
    assert frames(image) == {GREY}


def test_a_limit_takes_pictures_evenly_and_says_so(pictures, caplog):
    caplog.set_level("INFO", logger="headstart")
    said = {f"{folder}/{number}.png": "ants" for folder in ("ants", "bees", "new") for number in range(3)}
    drawn, _ = draw(pictures, said, limit=3)
    assert (drawn.shown, drawn.of, drawn.right, drawn.wrong) == (3, 9, 1, 1)
    assert "3 pictures of 9, evenly chosen" in caplog.text


def test_pictures_that_cannot_be_read_are_left_out(pictures, caplog):
    (pictures / "ants" / "1.png").write_bytes(b"replaced since")
    rows = [
        Prediction(str(pictures / "ants" / "0.png"), "ants", 0.9),
        Prediction(str(pictures / "ants" / "1.png"), "ants", 0.9),
        Prediction(str(pictures / "ants" / "broken.png"), error="truncated"),
    ]
    drawn = PredictionGrid(pictures / "grid.png").draw(rows, ("ants",))
    assert (drawn.shown, drawn.left_out) == (1, 2)
    assert PredictionGrid(pictures / "none.png").draw(rows[1:], ("ants",)) is None
    assert "none.png was not written" in caplog.text
    assert not (pictures / "none.png").exists()


def test_options_of_a_grid_are_checked_before_any_prediction(tmp_path):
    assert plan_grid(None) is None
    for wrong in ({"limit": 3}, {"overwrite": True}):
        with pytest.raises(UsageError, match="--grid alone"):
            plan_grid(None, **wrong)
    with pytest.raises(UsageError, match="from 1 to 1000"):
        plan_grid(tmp_path / "a.png", 1001)
    with pytest.raises(UsageError, match="--grid must name a file that ends in"):
        plan_grid(tmp_path / "a.jpg")
    (tmp_path / "a.png").touch()
    with pytest.raises(OutputError, match="is there already"):
        plan_grid(tmp_path / "a.png")
