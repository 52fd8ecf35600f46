"""The parts of an HTML page: plain texts are escaped."""

import pytest

from simsiam_tf.reporting import html_page


@pytest.mark.parametrize(
    "part",
    [
        html_page.note("<b>"),
        html_page.bullets(["<b>"]),
        html_page.state("<b>", "good"),
        html_page.table(["<b>"], [["<b>"]], numeric=True),
        html_page.section("<b>", "", subtitle="<b>"),
        html_page.build_page("<b>", "", [], "", []),
    ],
)
def test_plain_texts_are_escaped(part):
    assert "<b>" not in part
    assert "&lt;b&gt;" in part


def test_each_row_of_a_table_has_the_dot_of_its_colour():
    text = html_page.table(["name", "value"], [["one", "1"], ["two", "2"]], colors=["red", "blue"])
    assert text.count("●") == 2
    assert text.index("color:red") < text.index("one") < text.index("color:blue")
