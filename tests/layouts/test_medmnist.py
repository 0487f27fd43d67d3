import numpy as np
import pytest

from osler import formats, layouts
from osler.problem import Problem


def saved(path, labels, **parts):
    arrays = {}
    for part, count in parts.items():
        arrays[f"{part}_images"] = np.arange(count * 12, dtype=np.uint8).reshape(count, 3, 4)
        if labels is not None:
            arrays[f"{part}_labels"] = np.resize(np.asarray(labels), (count, np.shape(labels)[1])).astype(np.uint8)
    np.savez(path, **arrays)
    return path


def test_rows_become_cases_in_their_split(tmp_path):
    path = saved(tmp_path / "pneumoniamnist.npz", [[0], [1]], train=3, val=2, test=1)
    listing = layouts.read(path)
    assert [entry.id for entry in listing.entries] == [
        "test-000000",
        *(f"train-{row:06d}" for row in range(3)),
        *(f"validation-{row:06d}" for row in range(2)),
    ]
    assert [entry.split for entry in listing.entries] == ["test", *["train"] * 3, *["validation"] * 2]
    assert listing.questions[0].classes == ("normal", "pneumonia") and listing.questions[0].kind == "multiclass"
    assert [entry.findings[0].name for entry in listing.entries[1:4]] == ["normal", "pneumonia", "normal"]
    image = formats.read(listing.entries[3].images["image"])
    assert (image.array[0, 0, 0] == np.arange(24, 36).reshape(3, 4)).all()
    assert layouts.read(tmp_path) == listing


def test_several_columns_are_labels_of_their_own(tmp_path):
    listing = layouts.read(saved(tmp_path / "mine.npz", [[0, 1, 1], [1, 0, 0]], train=2))
    assert listing.questions[0].kind == "multilabel" and listing.questions[0].classes == ("0", "1", "2")
    assert [f.probability for f in listing.entries[0].findings] == [0, 1, 1]


def test_grades_are_ordinal(tmp_path):
    listing = layouts.read(saved(tmp_path / "retinamnist_64.npz", [[0], [4], [2]], train=3))
    assert listing.questions[0].kind == "ordinal" and len(listing.questions[0].classes) == 5
    assert listing.entries[1].findings[0].value == 4


def test_parts_and_labels_may_be_absent(tmp_path):
    listing = layouts.read(saved(tmp_path / "a.npz", None, test=2))
    assert len(listing.entries) == 2 and listing.questions == () and listing.entries[0].findings == ()


def test_broken_files_are_named(tmp_path):
    path = saved(tmp_path / "a.npz", [[0]], train=2)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(Problem, match="broken"):
        layouts.read(path)
    np.savez(path, train_images=np.zeros((3, 2, 2)), train_labels=np.zeros((2, 1), int))
    with pytest.raises(Problem, match="3 images but 2 labels"):
        layouts.read(path)
    np.savez(path, train_images=np.zeros((2, 2, 2)), train_labels=np.full((2, 1), 0.5))
    with pytest.raises(Problem, match="whole numbers"):
        layouts.read(path)


@pytest.mark.real_data
def test_the_real_pneumonia_set(real_data):
    listing = layouts.read(real_data / "pneumoniamnist")
    counts = {split: sum(entry.split == split for entry in listing.entries) for split in ("train", "validation")}
    assert counts == {"train": 4708, "validation": 524}
    assert sum(entry.findings[0].name == "pneumonia" for entry in listing.entries) > 3000
