"""`fastvq demo` of photographs, end to end: what it says is checked against its files."""

import os
import re

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image", reason="the demo needs Pillow")

from fastvq import cli, images  # noqa: E402
from fastvq.demo import photographs as demo  # noqa: E402


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    lines = []
    demo.run(folder, n_threads=1, random_state=0, echo=lines.append)
    return folder, lines


@pytest.fixture(scope="module")
def photographs():
    return demo.load_photographs()


def read(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def table(lines):
    """(photograph, job) -> the numbers of its line in the report."""
    found, photograph = {}, None
    for line in lines:
        name, job, numbers = line[:12].strip(), line[12:30].strip(), line[30:]
        if job == "24-bit colour":
            photograph = name
        if job in [j.name for j in demo.JOBS]:
            numbers = re.findall(r"[\d.]+", numbers.replace(",", ""))
            found[photograph, job] = [float(number) for number in numbers]
    return found


def test_every_job_is_in_the_table(outcome, photographs):
    _, lines = outcome
    assert set(table(lines)) == {(p, job.name) for p in photographs for job in demo.JOBS}


def test_the_originals_are_written_beside(outcome, photographs):
    folder, _ = outcome
    assert sorted(photographs) == ["china", "flower"]
    for name, picture in photographs.items():
        np.testing.assert_array_equal(read(folder / f"{name}.png"), picture)


@pytest.mark.parametrize("job", demo.JOBS, ids=lambda job: job.name)
@pytest.mark.parametrize("name", ["china", "flower"])
def test_numbers_are_those_of_the_files(outcome, photographs, name, job):
    folder, lines = outcome
    bits, size, psnr, seconds, their_psnr, their_seconds, ratio = table(lines)[name, job.name]
    stem = f"{name}-{job.name.replace(' ', '-')}"
    copy = read(folder / f"{stem}.png")
    assert psnr == pytest.approx(images.psnr(photographs[name], copy), abs=0.006)
    assert psnr > their_psnr - 0.3  # two seedings of the same kind: no worse beyond chance
    assert seconds > 0 and their_seconds > 0 and ratio > 0
    if job.block == 1:
        assert size == os.path.getsize(folder / f"{stem}.png")
        with Image.open(folder / f"{stem}.png") as image:
            assert image.mode == "P" and len(image.getcolors()) <= job.n_codewords
        code_bits, code_share = {16: 4, 256: 8}[job.n_codewords], 1
    else:
        assert size == os.path.getsize(folder / f"{stem}.npz")
        with np.load(folder / f"{stem}.npz") as stored:
            rows = stored["codebook"][stored["codes"]]
        np.testing.assert_array_equal(
            images.from_rows(rows, photographs[name].shape, job.block), copy
        )
        code_bits, code_share = 8, len(rows) / (427 * 640)
    codebook_bits = 8 * job.n_codewords * 3 * job.block**2
    assert bits == pytest.approx(code_bits * code_share + codebook_bits / (427 * 640), abs=0.006)


def test_the_digits(outcome):
    _, lines = outcome
    plain, coded = (float(x) for x in re.findall(r"([\d.]+)%", "\n".join(lines)))
    assert plain > 93
    assert coded > 85  # from one code each: ten times chance, and below all 64 pixels


def test_it_ends_with_where_the_pictures_are(outcome):
    folder, lines = outcome
    assert lines[-1].endswith(str(folder))
    assert len(os.listdir(folder)) == 2 + 2 * len(demo.JOBS) + 2  # and the blocks' .npz


def test_both_estimators_are_asked_for_the_same():
    ours, theirs = (e.get_params() for e in demo.estimators(7, 2, 5))
    assert ours["n_codewords"] == theirs["n_clusters"] == 7
    for name in ["n_init", "max_iter", "tol", "random_state"]:
        assert ours[name] == theirs[name], name


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "--output-dir", str(tmp_path / "file" / "demo")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("fastvq: error: ") and message.count("\n") == 1
