"""Elements by function calls."""

from parity.report.markup import Markup, join, tag


def test_text_is_escaped_and_markup_is_not() -> None:
    assert tag("p", "a < b & c", tag("b", "<x>")) == "<p>a &lt; b &amp; c<b>&lt;x&gt;</b></p>"
    assert join(["<", Markup("<br>")]) == "&lt;<br>"


def test_attributes() -> None:
    assert tag("a", class_="x", aria_label='"<', open=True, hidden=None, alt=False, x=1.50, y=-0.001) == (
        '<a class="x" aria-label="&quot;&lt;" open x="1.5" y="0"></a>'
    )


def test_void_elements_have_no_end() -> None:
    assert tag("meta", charset="utf-8") == '<meta charset="utf-8">'
