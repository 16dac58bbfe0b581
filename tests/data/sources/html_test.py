"""The visible text of pages, hostile ones too."""

import pytest

from data.sources import html


def test_html_survives_what_pages_do():
    page = "<div>a<style>x{}</style><b>b</b><script>if (a<b) {}</script><p>c<p>d<svg><title>t</title></svg>e"
    assert html.visible_text(page) == "ab\nc\nde\n"


@pytest.mark.parametrize(
    ("page", "visible"),
    [
        ("<html><head><title>T</title><meta charset=utf-8><body><p>one", "one\n"),
        ("<head><title>T</title><p>one", "one\n"),
        ("<head><title>T <b>x</b></title>\n one <b>two</b>", "one two\n"),
        ("<head><noscript><div>no</div></noscript><template><p>no</template><link></head>yes", "yes\n"),
        ("<head><noscript>no<body>yes", "yes\n"),
        ("<title>T</title><p>one", "T\none\n"),
    ],
)
def test_html_needs_no_end_tag_of_head(page, visible):
    assert html.visible_text(page) == visible


@pytest.mark.parametrize(
    ("page", "visible"),
    [
        ("<p title='a>b' class=\"c>\">one", "one\n"),
        ("<a href=x?y=1>1 < 2 && 3<4</a>", "1 < 2 && 3<4\n"),
        ("<!DOCTYPE html><!-- <p>no --->a<!-->b<?php no ?>c</>d</ no>e", "abcde\n"),
        ("<SCRIPT>'</b>' + no</Script >a<svg/>b<style>no", "ab\n"),
        ("one<p", "one\n"),
        ("&eacute;&#233;&lt;&bogus;", "éé<&bogus;\n"),
        ("&#" + "9" * 10_000 + ";", "\ufffd\n"),
    ],
)
def test_html_is_read_as_the_standard_says(page, visible):
    assert html.visible_text(page) == visible


@pytest.mark.parametrize(
    ("page", "visible"),
    [
        ("<a " * 20_000, ""),
        ("<a b='" * 20_000, ""),
        ("<!--" * 20_000, ""),
        ("</" * 100_000, ""),
        ("<svg>" * 50_000 + "</p>" * 50_000, ""),
        ("<svg>" * 50_000 + "</svg>" * 50_000 + "after", "after"),
        ("<head><svg></head>" * 20_000 + "after", "after"),
        ("<script></script" * 20_000, ""),
        ("<" * 100_000, "<" * 100_000),
        ("&" * 100_000, "&" * 100_000),
    ],
    ids=lambda value: value[:20],
)
def test_html_takes_time_in_proportion_to_a_hostile_page(page, visible):
    assert html.visible_text(page) == visible + "\n"
