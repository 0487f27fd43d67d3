"""The class without a finding comes first, so that figures are about the other."""

from osler.case import without_finding_first


def test_without_finding_first() -> None:
    assert without_finding_first(["nodule", "normal"]) == ("normal", "nodule")
    assert without_finding_first(["benign", "malignant", "normal"]) == ("normal", "benign", "malignant")
    assert without_finding_first(["no", "yes"]) == ("no", "yes")
    assert without_finding_first(["CT", "MR"]) == ("CT", "MR")
