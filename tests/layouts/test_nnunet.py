import json

import nibabel
import numpy as np
import pytest
from PIL import Image as Pillow

from osler import data, layouts
from osler.problem import Problem

V2 = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "spleen": 2}, "file_ending": ".nii.gz"}
V1 = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "liver", "2": "spleen"}}


def volume(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    made = nibabel.Nifti1Image(np.asarray(array).T, np.diag([2.0, 2, 3, 1]))
    made.header.set_xyzt_units("mm")
    nibabel.save(made, path)


def drawn(values=(1, 2)):
    array = np.zeros((3, 6, 8), np.uint8)
    for number, value in enumerate(values):
        array[1, 2 * number : 2 * number + 2, 1:4] = value
    return array


def write(root, dataset, names=("a", "b"), channels=1, suffix=True, part="Tr"):
    (root / "dataset.json").write_text(json.dumps(dataset))
    for name in names:
        for channel in range(channels):
            ending = f"_{channel:04d}" if suffix else ""
            volume(root / f"images{part}" / f"{name}{ending}.nii.gz", np.full((3, 6, 8), channel, np.int16))
        volume(root / f"labels{part}" / f"{name}.nii.gz", drawn())
    return root


@pytest.mark.parametrize("suffix", [True, False])
@pytest.mark.parametrize("dataset", [V1, V2])
def test_both_versions_with_and_without_numbers_of_channels(tmp_path, dataset, suffix):
    listing = layouts.read(write(tmp_path, dataset, suffix=suffix))
    [question] = listing.questions
    assert (question.kind, question.classes, question.values) == ("segmentation", ("liver", "spleen"), ((1,), (2,)))
    assert not question.separate and question.ignore is None
    assert [entry.id for entry in listing.entries] == ["a", "b"] and not listing.problems
    assert listing.modality == ("MR" if dataset is V1 else "CT") and listing.grouping == ""
    case = data.read_case(listing.entries[0], listing.questions)
    np.testing.assert_array_equal(case.maps["mask"][0], drawn())
    assert [(f.name, f.box.start, f.box.stop) for f in case.findings] == [
        ("liver", (1, 0, 1), (2, 2, 4)),
        ("spleen", (1, 2, 1), (2, 4, 4)),
    ]
    assert case.images["image"].spacing == (3, 2, 2)


def test_a_name_that_ends_in_digits_is_no_channel(tmp_path):
    listing = layouts.read(write(tmp_path, V2, names=("case_0001", "case_0002"), suffix=False))
    assert [entry.id for entry in listing.entries] == ["case_0001", "case_0002"]


def test_regions_and_ignored_pixels(tmp_path):
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    listing = layouts.read(write(tmp_path, V2 | {"labels": labels, "regions_class_order": [1, 2]}))
    [question] = listing.questions
    assert (question.classes, question.values, question.ignore) == (("whole", "core"), ((1, 2), (2,)), 3)
    found = data.read_case(listing.entries[0], listing.questions).findings
    assert [(f.name, int(f.mask.array.sum())) for f in found] == [("whole", 12), ("core", 6)]


def test_several_channels_stand_under_their_names_and_fusing_them_is_refused_in_words(tmp_path):
    dataset = V2 | {"channel_names": {"0": "T1", "1": "FLAIR"}}
    listing = layouts.read(write(tmp_path, dataset, channels=2))
    first = listing.entries[0]
    assert list(first.images) == ["T1", "FLAIR"] and listing.modality == "MR"
    case = data.read_case(first, listing.questions)
    assert [int(image.array.max()) for image in case.images.values()] == [0, 1]
    with pytest.raises(Problem, match="case a has 2 images"):
        data.the_image(case)
    (tmp_path / "imagesTr" / "a_0001.nii.gz").unlink()
    assert "the channel FLAIR (0001) of this case is missing" in str(layouts.read(tmp_path).problems[0])


def test_channels_along_the_last_axis_as_in_the_decathlon(tmp_path):
    write(tmp_path, V1 | {"modality": {"0": "T2", "1": "ADC"}}, names=("a",), suffix=False)
    volume(tmp_path / "imagesTr" / "a.nii.gz", np.stack([np.full((3, 6, 8), n, np.int16) for n in (5, 7)]))
    [entry] = layouts.read(tmp_path).entries
    case = data.read_case(entry, layouts.read(tmp_path).questions)
    assert {name: image.array.max() for name, image in case.images.items()} == {"T2": 5, "ADC": 7}
    assert case.maps["mask"].shape == (1, 3, 6, 8)


def test_flat_pictures(tmp_path):
    dataset = V2 | {"channel_names": {"0": "R", "1": "G", "2": "B"}, "file_ending": ".png"}
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    Pillow.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "imagesTr" / "a_0000.png")
    Pillow.fromarray(drawn()[1]).save(tmp_path / "labelsTr" / "a.png")
    listing = layouts.read(tmp_path)
    case = data.read_case(listing.entries[0], listing.questions)
    np.testing.assert_array_equal(case.maps["mask"][0, 0], drawn()[1])


def test_test_images_count_where_they_are_outlined(tmp_path):
    write(tmp_path, V2)
    volume(tmp_path / "imagesTs" / "t_0000.nii.gz", np.zeros((3, 6, 8), np.int16))
    listing = layouts.read(tmp_path)
    assert [entry.split for entry in listing.entries] == [None, None]
    assert any(note.startswith("1 files in imagesTs have no labels") for note in listing.notes)
    volume(tmp_path / "labelsTs" / "t.nii.gz", drawn())
    assert [(e.id, e.split) for e in layouts.read(tmp_path).entries] == [
        ("a", "train"),
        ("b", "train"),
        ("t", "test"),
    ]


def test_what_does_not_fit_is_a_sentence_and_the_others_go_on(tmp_path):
    write(tmp_path, V2, names=("a", "b", "strange", "other"))
    (tmp_path / "labelsTr" / "a.nii.gz").unlink()
    volume(tmp_path / "labelsTr" / "alone.nii.gz", drawn())
    volume(tmp_path / "labelsTr" / "strange.nii.gz", drawn((1, 7)))
    listing = layouts.read(tmp_path)
    assert [entry.id for entry in listing.entries] == ["b", "other", "strange"]
    assert ["the image has no label" in str(p) or "the label has no image" in str(p) for p in listing.problems] == [
        1,
        1,
    ]
    with pytest.raises(Problem, match=r"strange.nii.gz: the mask holds the value 7, which is no label here"):
        data.read_case(listing.entries[2], listing.questions)
    assert data.read_case(listing.entries[0], listing.questions).maps


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"labels": {}}',
        '{"labels": {"background": 0}}',
        '{"labels": {"a": 300}}',
        '{"labels": {"a": "b"}}',
    ],
)
def test_a_broken_dataset_json_is_a_sentence(tmp_path, content):
    write(tmp_path, V2)
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(Problem, match=r"dataset.json: .*\.$"):
        layouts.read(tmp_path)


@pytest.mark.real_data
def test_hippocampus_as_it_is(real_data):
    listing = layouts.read(real_data / "hippocampus")
    assert len(listing.entries) == 200 and not listing.problems and listing.modality == "MR"
    assert listing.questions[0].classes == ("anterior", "posterior")
    for entry in listing.entries[::40]:
        case = data.read_case(entry, listing.questions)
        # Counted with nibabel alone.
        truth = np.asarray(nibabel.load(real_data / "hippocampus" / "labelsTr" / f"{entry.id}.nii.gz").dataobj)
        assert {f.name: int(f.mask.array.sum()) for f in case.findings} == {
            "anterior": int((truth == 1).sum()),
            "posterior": int((truth == 2).sum()),
        }
        assert case.images["image"].spacing == (1, 1, 1)
