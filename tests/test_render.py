"""Rendered sets on disk: what their bytes depend on, what an interruption leaves, and what is never overwritten."""

from __future__ import annotations

import fcntl
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command
from PIL import Image
from rendering import require

from fastinfogan import train
from fastinfogan.data.factors import read_factors
from fastinfogan.data.render import NAMES, output, render, svhn_like
from fastinfogan.data.render.painter import Factor, Painter, Recipe, picture
from fastinfogan.errors import UserError
from fastinfogan.metrics import evaluation


def draw(name: str, out: Path, count: int = 12, seed: int = 3, **others: Any) -> Path:
    """Render a small set without a word."""
    require(name)
    return render(name, count=count, seed=seed, out=out, progress=False, **others)


def files(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` by its relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def images(name: str, folder: Path) -> Any:
    """The pictures of a set in their order, whatever the layout."""
    if name == "celeba-like":
        return [path.read_bytes() for path in sorted((folder / "img_align_celeba").iterdir())]
    if name == "svhn-like":
        from scipy.io import loadmat

        parts = [loadmat(folder / f"{split}_32x32.mat")["X"] for split in ("train", "test")]
        return np.concatenate(parts, axis=3).transpose(3, 0, 1, 2).tolist()
    if name == "sprites":
        return np.load(next(folder.glob("dsprites*.npz")))["imgs"].tolist()
    return np.load(folder / "images.npy").tolist()


@pytest.fixture
def without_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A white contact sheet, for tests of the images alone: a real one costs more than ten images."""
    monkeypatch.setattr(output, "contact_sheet", lambda *_: Image.new("L", (1, 1), 255))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``rendered(name)``: the folder of a set of twelve images, seed 3, not to be changed."""
    folder = tmp_path_factory.mktemp("rendered")

    def make(name: str) -> Path:
        return draw(name, folder / name).parent

    return make


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_and_count_give_the_same_bytes(
    name: str, tmp_path: Path, rendered: Callable[[str], Path]
) -> None:
    draw(name, tmp_path)
    assert files(tmp_path) == files(rendered(name))
    assert not (tmp_path / ".part").exists()


@pytest.mark.parametrize("name", NAMES)
def test_an_image_depends_on_seed_and_number_alone(
    name: str, tmp_path: Path, rendered: Callable[[str], Path], without_sheet: None
) -> None:
    draw(name, tmp_path / "few", 6)
    draw(name, tmp_path / "other", 6, seed=4)
    few, many, other = (images(name, folder) for folder in (tmp_path / "few", rendered(name), tmp_path / "other"))
    assert few == many[:6] and len(many) == 12
    assert sum(one == two for one, two in zip(few, other, strict=True)) == 0
    assert len({str(one) for one in many}) == 12


def test_processes_of_their_own_draw_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_sheet: None
) -> None:
    draw("svhn-like", tmp_path / "alone", 300, workers=1)
    monkeypatch.setattr(output, "PER_PROCESS", 100)
    draw("svhn-like", tmp_path / "shared", 300, workers=2)
    assert files(tmp_path / "alone") == files(tmp_path / "shared")


@pytest.mark.parametrize("name", NAMES)
def test_factors_are_plain_arrays_within_their_ranges(name: str, tmp_path: Path, without_sheet: None) -> None:
    draw(name, tmp_path, 40)
    content = np.load(tmp_path / "factors.npz", allow_pickle=False)
    low, high, values = content["low"], content["high"], content["values"]
    assert values.shape == (40, len(content["names"])) and values.dtype == np.float32
    assert (values >= low).all() and (values <= high).all() and (values.std(0) > 0).all()
    for kind, unit, top, column in zip(content["kinds"], content["units"], high, values.T, strict=True):
        if kind == "categorical":
            assert len(str(unit).split("|")) == top + 1 and (column == column.astype(int)).all()
    factors = read_factors(tmp_path / "factors.npz")
    assert factors.names == tuple(content["names"]) and len(factors) == 40


def test_a_contact_sheet_shows_every_factor_that_it_promises(tmp_path: Path) -> None:
    sheet = draw("sprites", tmp_path, 5)
    assert sheet == tmp_path / "contact.png"
    with Image.open(sheet) as picture:
        pixels = np.asarray(picture.convert("L"))
    side = 2 * 64  # enlarged twice
    tall = [side + 6 + 13 * lines for lines in (5, 1, 1, 1, 1, 1)]  # the images, then a row for each of five factors
    assert pixels.shape[0] == sum(tall)
    tops = np.cumsum([0, *tall[:-1]])
    white = [[(pixels[top : top + side, left : left + side] == 255).sum() for left in (84, 84 + 134)] for top in tops]
    assert (np.array(white) > 4 * 40).all()  # two sprites in every row


def test_an_interrupted_command_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_sheet: None
) -> None:
    painted = []
    paint = svhn_like.SvhnLike.paint

    def counted(self: Painter, values: Any, generator: Any) -> Any:
        if len(painted) == 200:
            raise KeyboardInterrupt
        painted.append(1)
        return paint(self, values, generator)

    monkeypatch.setattr(svhn_like.SvhnLike, "paint", counted)
    with pytest.raises(KeyboardInterrupt):
        draw("svhn-like", tmp_path / "broken", 300)
    assert [path.name for path in (tmp_path / "broken").iterdir()] == [".part"]
    with pytest.raises(UserError, match=r"holds the beginning of another set.*count 300"):
        draw("svhn-like", tmp_path / "broken", 299)
    painted = [1] * 1000  # so that it goes on
    draw("svhn-like", tmp_path / "broken", 300)
    assert len(painted) - 1000 == 300 - 128  # the first chunk was not drawn again
    draw("svhn-like", tmp_path / "whole", 300)
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_what_was_drawn_before_a_power_cut_is_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_sheet: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A note that a chunk is done may have reached the disk, and its images may not."""
    paint = svhn_like.SvhnLike.paint
    painted: list[int] = []

    def counted(self: Painter, values: Any, generator: Any) -> Any:
        if len(painted) == 200:
            raise KeyboardInterrupt
        painted.append(1)
        return paint(self, values, generator)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(svhn_like.SvhnLike, "paint", counted)
        draw("svhn-like", tmp_path / "broken", 300)
    lost = np.load(tmp_path / "broken" / ".part" / "images.npy", mmap_mode="r+")
    lost[:128] = 0
    boot = tmp_path / "boot_id"
    boot.write_text("of the next start\n")
    monkeypatch.setattr(output, "BOOT", boot)
    draw("svhn-like", tmp_path / "broken", 300)
    assert "the machine was started anew" in capsys.readouterr().err
    draw("svhn-like", tmp_path / "whole", 300)
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


@pytest.mark.parametrize("missing", ["images.npy", "factors.npz"])
def test_a_finished_set_that_lacks_a_file_is_not_called_finished(missing: str, tmp_path: Path) -> None:
    draw("faces", tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=f"lacks {missing} of the set that was rendered there: delete what is left of"):
        draw("faces", tmp_path)
    assert not (tmp_path / ".part").exists()


def test_a_command_interrupted_while_files_move_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name == "factors.npz":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw("svhn-like", tmp_path / "broken")
    assert not (tmp_path / "broken" / "render.json").exists()
    monkeypatch.undo()
    draw("svhn-like", tmp_path / "broken")
    draw("svhn-like", tmp_path / "whole")
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_a_finished_set_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw("svhn-like", tmp_path)
    before = files(tmp_path)
    monkeypatch.setattr(svhn_like.SvhnLike, "paint", lambda *_: pytest.fail("it was drawn again"))
    draw("svhn-like", tmp_path)
    with pytest.raises(UserError, match=r"holds another set \(renderer svhn-like, count 12, seed 3.*choose another"):
        draw("svhn-like", tmp_path, seed=4)
    assert {name: content for name, content in files(tmp_path).items() if ".part" not in name} == before
    assert json.loads(before["render.json"])["count"] == 12


@pytest.mark.parametrize("content", ["", '{"renderer": "svhn-l', "[]"])
@pytest.mark.parametrize("record", ["render.json", ".part/recipe.json"])
def test_a_damaged_record_says_what_to_delete(record: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / "out" / record
    path.parent.mkdir(parents=True)
    path.write_text(content)
    told = rf"^{path} is damaged \(.*\): choose another --out, or delete {path.parent}$"
    with pytest.raises(UserError, match=told):
        draw("svhn-like", tmp_path / "out")


@pytest.mark.parametrize("record", ["recipe.json", "render.json"])
def test_a_record_gets_its_name_when_it_is_whole(
    record: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_sheet: None
) -> None:
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if target.name == record:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", interrupted)
        draw("svhn-like", tmp_path / "broken")
    assert not list((tmp_path / "broken").rglob(record))
    for folder in (tmp_path / "broken", tmp_path / "whole"):
        draw("svhn-like", folder)
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_files_that_were_not_rendered_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "train_32x32.mat").write_bytes(b"the real SVHN")
    with pytest.raises(UserError, match=r"holds train_32x32.mat, which was not rendered there: choose another --out"):
        draw("svhn-like", tmp_path)
    assert files(tmp_path) == {"train_32x32.mat": b"the real SVHN"}
    assert not (tmp_path / ".part").exists()


def test_two_commands_do_not_share_a_folder(tmp_path: Path) -> None:
    (tmp_path / ".part").mkdir()
    with (tmp_path / ".part" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another command is rendering into"):
            draw("sprites", tmp_path)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*file/out .*choose another folder with --out"):
        draw("sprites", tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("celeba", {}, "unknown renderer 'celeba': choose one of faces, chairs"),
        ("faces", {"count": 0}, "--count 0 is out of range: faces takes from 1 to 10,000,000 images"),
        ("svhn-like", {"count": 1}, "--count 1 is out of range: svhn-like takes from 2 to 500,000 images"),
        ("celeba-like", {"count": 10**6}, "--count 1,000,000 is out of range: celeba-like takes from 3 to 999,999"),
        ("sprites", {"count": 737_281}, "--count 737,281 is out of range: sprites takes from 1 to 737,280"),
        ("faces", {"seed": -1}, "--seed -1 is out of range: choose a whole number from 0 to"),
        ("faces", {"seed": 1 << 64}, "--seed 18446744073709551616 is out of range"),
        ("faces", {"size": 48}, "--size 48 is not drawn: faces takes 32 or 64 pixels a side"),
        ("sprites", {"size": 32}, "--size 32 is not drawn: sprites takes 64 pixels a side"),
        ("faces", {"workers": 0}, "--workers 0 is too few: choose 1 or more"),
        ("faces", {"models": Path("m")}, "--models m is for chairs: drop it, or render chairs"),
    ],
)
def test_values_out_of_range_are_refused(name: str, changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    settings = {"count": 4, "seed": 0, "out": tmp_path / "out", "progress": False} | changed
    with pytest.raises(UserError) as raised:
        render(name, **settings)
    assert message in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_chairs_of_other_models_are_another_set(tmp_path: Path) -> None:
    pytest.importorskip("moderngl", reason="moderngl is not installed")
    models = tmp_path / "models"
    models.mkdir()
    for name in ("a.obj", "c.obj"):
        (models / name).write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1 3 4\n")
    settings: dict[str, Any] = {"count": 4, "seed": 0, "out": tmp_path / "out", "models": models, "progress": False}
    assert render("chairs", **settings) == render("chairs", **settings)
    (models / "a.obj").rename(models / "d.obj")  # c was the second class and is the first
    with pytest.raises(UserError, match="holds another set"):
        render("chairs", **settings)


@pytest.mark.parametrize(("name", "package"), [("faces", "moderngl"), ("celeba-like", "resvg_py")])
def test_a_missing_package_is_named_before_anything_is_written(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package}.*pip install -e '\.\[render\]'"):
        render(name, count=4, seed=0, out=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_missing_system_libraries_are_named_with_their_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moderngl = pytest.importorskip("moderngl", reason="moderngl is not installed")

    def absent(**_: object) -> None:
        raise Exception("libEGL.so.1: cannot open shared object file")

    monkeypatch.setattr(moderngl, "create_context", absent)
    with pytest.raises(UserError, match=r"libEGL.so.1.*apt-get install libegl1 libgl1 libgl1-mesa-dri"):
        render("chairs", count=4, seed=0, out=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_an_error_in_a_process_reaches_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Painter):
        factors = (Factor("f", "continuous", 0, 1),)
        shown = ("f",)
        shape = (4, 4)

        def paint(self, values: Any, generator: Any) -> Any:
            raise UserError("this model is damaged")

    with pytest.raises(UserError, match="this model is damaged"):
        output.produce(Recipe("faces", 9, 0, 4), lambda _: Failing(), output.Layout(), tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == [".part"]


def test_a_changed_factor_leaves_all_else_alone() -> None:
    painter = svhn_like.SvhnLike(Recipe("svhn-like", 1, 0, 32))
    plain, changed = picture(painter, 5, 7), picture(painter, 5, 7, light=0.25)
    column = [factor.name for factor in painter.factors].index("light")
    assert changed.values[column] == 0.25
    assert (np.delete(plain.values, column) == np.delete(changed.values, column)).all()
    again = picture(painter, 5, 7, light=float(plain.values[column]))
    assert (again.pixels == plain.pixels).all() and (changed.pixels != plain.pixels).any()


def test_categorical_factors_use_every_class_equally_often() -> None:
    factor = Factor("c", "categorical", 0, 4, "a|b|c|d|e")
    assert [factor.at(share) for share in (0, 0.199, 0.2, 0.799, 0.999999)] == [0, 0, 1, 3, 4]
    assert factor.told(3) == "d"


TRAINED_BY = {"faces": "faces", "chairs": "chairs", "celeba-like": "celeba", "svhn-like": "svhn", "sprites": "dsprites"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_preset_trains_on_what_its_renderer_drew(
    name: str, rendered: Callable[[str], Path], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "INFORMATION_SAMPLES", 100)
    flags = ["--iterations", "2", "--batch", "4", "--log-every", "1", "--device", "cpu", "--run-dir", tmp_path / "run"]
    ended = command(train, "--preset", TRAINED_BY[name], "--data", rendered(name), *flags)
    assert ended.code == 0, ended.err
    assert (tmp_path / "run" / "figures" / "samples-final.png").is_file()
