"""The page: whole, self-contained, the same every time, and nothing in it is taken for markup that is not ours."""

import base64
import hashlib
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from i2c_fast.cli import main
from i2c_fast.data.generated import write_generated
from i2c_fast.errors import UserError
from i2c_fast.report.page import write_report

from .small_run import Page, write_folders, write_run

QUIET = Console(quiet=True)
EVIL = '"><img src=x onerror=alert(1)>'
SECTIONS = ["errors", "thresholds", "training", "pixels", "failures", "pictures", "about"]


@pytest.fixture(scope="module")
def runs(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs on the same data."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        write_run(folder / "first", tiny_set),
        write_run(folder / "second", tiny_set, "stage1.method=cam", seed=1),
    ]


def report(folder: Path, runs: list[Path], *overrides: str, date: str = "2026-01-02") -> str:
    write_report(runs, overrides, folder / "report.html", QUIET, date)
    return (folder / "report.html").read_text("utf-8")


def assert_self_contained(html: str) -> Page:
    """Nothing is loaded, run or linked to from outside."""
    page = Page(html)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert str(attributes.get(name, "#")).startswith("#" if tag == "a" else ("data:image/webp;base64,", "#"))
    assert "url(" not in html and "@import" not in html
    return page


@pytest.mark.parametrize("protocol", ["paper", "wsolevaluation"])
@pytest.mark.parametrize("count", [1, 2])
def test_page_has_all_sections_and_needs_nothing_else(
    runs: list[Path], tmp_path: Path, protocol: str, count: int
) -> None:
    page = assert_self_contained(report(tmp_path, runs[:count], f"eval.protocol={protocol}"))
    ids = page.ids()
    assert [name for name in ids if name in SECTIONS] == SECTIONS
    assert len(set(ids)) == len(ids)
    targets = [str(a["href"])[1:] for a in page.all("a")]
    assert set(targets) <= set(ids)
    assert all(image["alt"] for image in page.all("img"))
    assert all(chart.get("aria-label") or chart.get("aria-hidden") for chart in page.all("svg"))
    assert ("MaxBoxAccV2" in page.text) == (protocol == "wsolevaluation")
    assert ("224 × 224" in page.text) == (protocol == "wsolevaluation")
    assert ("Where the runs differ most" in page.text) == (count == 2)
    assert ("paired differences" in page.text) == (count == 2)
    for name in ("first", "second")[:count]:
        assert name in page.text


def test_headings_are_in_order(runs: list[Path], tmp_path: Path) -> None:
    levels = [int(tag[1]) for tag, _ in Page(report(tmp_path, runs)).elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_tables_have_captions_and_scopes(runs: list[Path], tmp_path: Path) -> None:
    page = Page(report(tmp_path, runs))
    assert len(page.all("caption")) == len(page.all("table")) >= 4
    assert all(head["scope"] in ("col", "row", "rowgroup") for head in page.all("th"))


def test_policy_allows_the_page_s_own_style_and_pictures_alone(runs: list[Path], tmp_path: Path) -> None:
    html = report(tmp_path, runs[:1])
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = [meta["content"] for meta in Page(html).all("meta") if "http-equiv" in meta]
    allowed = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert policy == allowed


def test_figures_are_those_of_evaluate(runs: list[Path], tmp_path: Path) -> None:
    text = " ".join(Page(report(tmp_path, runs)).text.split())
    CliRunner().invoke(main, ["evaluate", str(runs[0]), "-o", str(tmp_path / "errors.json")])
    found = json.loads((tmp_path / "errors.json").read_text())
    errors = found["errors"][str(runs[0])]
    for value in (errors["cls_top1"], errors["gt_known"]["error"], found["centered_box_gt_known_error"]):
        assert f"{value:.2f}" in text
    assert f"at {errors['gt_known']['threshold']}" in text
    for word in ("A Processor", "abc1234", "2.13.0", "2026-01-02", "cross-entropy alone", "stage1.method"):
        assert word in text


def test_equal_input_gives_equal_bytes(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert report(tmp_path / "a", runs) == report(tmp_path, runs)


def test_other_people_s_names_are_text(tmp_path: Path) -> None:
    data = write_folders(tmp_path / "data", (EVIL, "<script>alert(1)<!--"), (f"{EVIL}.png", "a&amp;b.png"))
    run = write_run(tmp_path / f"run {EVIL}", data, "batch.classes=2")
    (run / "environment.json").write_text(json.dumps({"torch": "</style></title><script>alert(2)</script>"}))
    evaluation = {"kind": "evaluation", "step": 7, "scores": {"protocol": "<b onclick=x>", "cls_top1": 5.0}}
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps(evaluation) + "\n")
    other = write_run(tmp_path / "]]> --> <svg onload=alert(3)>", data, "batch.classes=2", seed=1)
    page = assert_self_contained(report(tmp_path, [run, other]))
    for text in (
        EVIL,
        "<script>alert(1)<!--",
        "a&amp;b.png",
        "</style></title><script>",
        "<b onclick=x>",
        "<svg onload",
    ):
        assert text in page.text
    labels = [str(chart.get("aria-label")) for chart in page.all("svg")]
    assert any(EVIL in label for label in labels)  # in SVG too it is an attribute's text


def test_a_name_that_is_not_utf_8_is_spelled_out(tiny_set: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run\udcff", tiny_set)
    assert "run\\udcff" in report(tmp_path, [run])


def test_data_without_boxes_still_gives_a_page(tmp_path: Path) -> None:
    data = write_folders(tmp_path / "data", ("cat", "dog"), ("1.png", "2.png"))
    page = assert_self_contained(report(tmp_path, [write_run(tmp_path / "run", data, "batch.classes=2")]))
    assert "no boxes" in page.text and "no ground-truth box" in page.text
    assert "thresholds" not in page.ids() and "Top-1 Cls error" in page.text
    assert page.all("img")


def test_run_without_log_and_environment_gives_a_page_that_says_so(tiny_set: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tiny_set)
    for name, content in {"log.jsonl": "", "environment.json": "[]"}.items():
        (run / name).write_text(content)
    assert "No training log" in Page(report(tmp_path, [run])).text
    for name in ("log.jsonl", "environment.json"):
        (run / name).unlink()
    page = Page(report(tmp_path, [run]))
    assert "No training log" in page.text and "not known" in page.text


def test_checkpoints_of_one_run_can_be_compared(runs: list[Path], tmp_path: Path) -> None:
    early = runs[0] / "checkpoints" / "step-00000008.pt"
    late = tmp_path / "late" / "checkpoints" / "step-00000008.pt"
    late.parent.mkdir(parents=True)
    shutil.copy(early, late)
    assert "late/checkpoints/step-00000008" in Page(report(tmp_path, [early, late])).text


# What is refused, in a line, before anything is written


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def assert_one_line(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("i2c-fast: ") and result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def test_command_writes_the_page_and_nothing_beside_it(runs: list[Path], tmp_path: Path) -> None:
    result = call(*runs, "run.threads=1", "-o", tmp_path / "new" / "page.html")
    assert result.exit_code == 0, result.output
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]
    assert "page.html" in result.output and "MB" in result.output


def test_a_run_may_have_an_equals_sign_in_its_name(tiny_set: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.lr=1", tiny_set)
    assert call(run, "-o", tmp_path / "page.html").exit_code == 0


def test_wrong_runs_are_named(runs: list[Path], tiny_set: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("no checkpoint")
    assert_one_line(call(tmp_path / "missing", "-o", page), "missing", "does not exist")
    assert_one_line(call("x" * 5000, "-o", page), "does not exist")
    assert_one_line(call(tmp_path / "empty", "-o", page), "no checkpoint")
    assert_one_line(call(tmp_path / "text.pt", "-o", page), "text.pt", "no checkpoint")
    assert_one_line(call(runs[0], runs[0] / ".." / "first", "-o", page), "given twice")
    assert_one_line(call(runs[0], runs[0] / "checkpoints/step-00000008.pt", "-o", page), "given twice")
    assert_one_line(call(*[runs[0]] * 7, "-o", page), "7 runs", "6")
    assert_one_line(call("data.root=x", "-o", page), "no run given")
    assert_one_line(call(runs[0], "data.rot=x", "-o", page), "did you mean data.root")
    assert_one_line(call(runs[0], "run.device=banana", "-o", page), "run.device=banana")
    assert not page.exists()


def test_moved_data_is_asked_for(tiny_set: Path, tmp_path: Path) -> None:
    moved = tmp_path / "set"
    shutil.copytree(tiny_set, moved)
    run = write_run(tmp_path / "run", moved)
    moved.rename(tmp_path / "elsewhere")
    assert_one_line(call(run, "-o", tmp_path / "page.html"), str(moved), "data.root=FOLDER")
    assert call(run, f"data.root={tmp_path / 'elsewhere'}", "-o", tmp_path / "page.html").exit_code == 0


def test_runs_that_do_not_compare_are_refused(runs: list[Path], tiny_set: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_generated(tmp_path / "more", seed=1, classes=5, train_images=1, val_images=1, size=32)
    write_generated(tmp_path / "images", seed=1, classes=3, train_images=1, val_images=5, size=32)
    shutil.copytree(tiny_set, tmp_path / "boxes")
    annotation = sorted((tmp_path / "boxes/Annotations/CLS-LOC/val").iterdir())[0]
    annotation.write_text(re.sub(r"<xmin>\d+", "<xmin>0", annotation.read_text()))
    for name, words in {"more": "5", "images": "15 of", "boxes": "other boxes"}.items():
        other = write_run(tmp_path / f"run-{name}", tmp_path / name)
        assert_one_line(call(runs[0], other, "-o", page), "first", f"run-{name}", words)
    for key in ("eval.protocol=wsolevaluation", "eval.threshold_step=5"):
        other = write_run(tmp_path / key, tiny_set, key)
        assert_one_line(call(runs[0], other, "-o", page), key.split("=")[0])
    assert call(runs[0], other, "eval.threshold_step=51", "-o", page).exit_code == 0


def test_an_output_that_cannot_be_written_is_refused_before_scoring(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert_one_line(call(runs[0], "-o", tmp_path), "is a folder", "report.html")
    assert_one_line(call(runs[0], "-o", tmp_path / "file" / "page.html"), "which is a file")
    assert_one_line(call(runs[0], "-o", tmp_path / ("x" * 300)), "--output", "too long")
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_a_page_that_is_there_stays_when_a_new_one_fails(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")
    monkeypatch.setattr("i2c_fast.files.os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match="No space left"):
        write_report(runs[:1], (), page, QUIET)
    assert page.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["page.html"]
