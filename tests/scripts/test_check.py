"""The table of the embedded models' figures."""

from scripts.pretrain import check


def test_a_row_has_all_and_each_skill_with_intervals_over_distinct_captions():
    captions = ["a circle", "a star"] * 40 + ["a blue star", "a red star"] * 40
    values = [True] * 80 + [True, False] * 40
    name, every, *skills = [cell.strip() for cell in check.row("seen", values, captions).strip("|").split("|")]
    assert name == "seen" and every.startswith("75.0 [")
    assert [cell.split()[0] for cell in skills] == ["100.0", "nan", "nan", "50.0", "nan", "nan"]
    low, high = (float(edge) for edge in every.partition("[")[2].rstrip("]").split(","))
    assert high - low > 40, "four captions, one of them never right, say little, however often each is drawn"
