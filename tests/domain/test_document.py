"""Domain XML from outside: bad input, and edits that leave the rest alone."""

import time

import pytest
from lxml import etree

from tests.domain.documents import domain
from virtpass.domain.document import (
    MAX_XML,
    insert,
    insert_after,
    normalise,
    parse_document,
    remove,
    serialise,
)
from virtpass.system.errors import UsageError

BOMB = (
    "<!DOCTYPE domain ["
    + "<!ENTITY e0 'aaaaaaaaaa'>"
    + "".join(f"<!ENTITY e{n} '{f'&e{n - 1};' * 10}'>" for n in range(1, 12))
    + "]><domain><name>&e11;</name></domain>"
)
BOMB_IN_ATTRIBUTE = BOMB.replace("<name>&e11;</name>", "<name x='&e11;'/>")
OUTSIDE = "<!DOCTYPE domain [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><domain><name>&e;</name></domain>"
EXTERNAL = "<!DOCTYPE domain SYSTEM 'http://127.0.0.1:9/x.dtd'><domain><name>a</name></domain>"


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("", "xml-empty"),
        (" \n\t", "xml-empty"),
        ("no XML at all", "xml-syntax"),
        ("<domain>", "xml-syntax"),
        ("<domain/><domain/>", "xml-syntax"),
        ("<domain>\0</domain>", "xml-syntax"),
        ("<domain>\udc80</domain>", "xml-syntax"),
        ("<domain>&unknown;</domain>", "xml-syntax"),
        ("<network/>", "xml-root"),
        ("<x:domain xmlns:x='urn:x'/>", "xml-root"),
        ("<a>" * 5000 + "</a>" * 5000, "xml-syntax"),
        (f"<domain>{' ' * MAX_XML}</domain>", "xml-size"),
        (OUTSIDE, "xml-doctype"),
        (EXTERNAL, "xml-doctype"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_what_is_no_domain_is_refused_in_one_line(text: str, reference: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_document(text)
    assert caught.value.reference == reference
    assert caught.value.line.isprintable()


@pytest.mark.parametrize("text", [BOMB, BOMB_IN_ATTRIBUTE], ids=["text", "attribute"])
def test_an_entity_bomb_does_not_explode(text: str) -> None:
    start = time.process_time()
    with pytest.raises(UsageError) as caught:
        parse_document(text)
    assert caught.value.reference in {"xml-doctype", "xml-syntax"}
    assert time.process_time() - start < 5


def test_an_encoding_that_the_text_claims_to_have_does_not_count() -> None:
    root = parse_document("<?xml version='1.0' encoding='iso-8859-1'?><domain><name>Größe</name></domain>")
    assert root.findtext("name") == "Größe"


def test_names_with_everything_in_them_survive() -> None:
    text = domain(name="--&lt;&amp;' &quot; ünïcode 日本 x")
    assert parse_document(normalise(text)).findtext("name") == "--<&' \" ünïcode 日本 x"


def test_comments_instructions_and_cdata_survive() -> None:
    inside = "\n  <!-- in -->\n  <?x y?><n><![CDATA[<&>]]></n>\n"
    text = f'<!-- before --><domain a="1">{inside}</domain><!-- after -->\n'
    written = normalise(text)
    for part in ("<!-- before -->", "<!-- in -->", "<?x y?>", "<![CDATA[<&>]]>", "<!-- after -->"):
        assert part in written
    assert normalise(written) == written


@pytest.mark.parametrize("index", [0, 1, 2])
def test_an_inserted_element_is_indented_like_its_neighbours(index: int) -> None:
    root = parse_document("<domain>\n    <a/>\n    <b/>\n</domain>")
    element = etree.fromstring("<new><child><leaf/></child></new>")
    insert(root, index, element)
    lines = ["    <a/>", "    <b/>"]
    lines[index:index] = [
        "    <new>",
        "        <child>",
        "            <leaf/>",
        "        </child>",
        "    </new>",
    ]
    assert serialise(root) == "\n".join(["<domain>", *lines, "</domain>", ""])


def test_an_empty_parent_gets_lines_of_its_own() -> None:
    root = parse_document("<domain>\n  <devices/>\n</domain>")
    insert(root[0], 0, etree.Element("new"))
    assert serialise(root) == "<domain>\n  <devices>\n    <new/>\n  </devices>\n</domain>\n"


def test_a_document_in_one_line_stays_in_one_line() -> None:
    root = parse_document("<domain><a/></domain>")
    insert_after(etree.fromstring("<new>\n</new>"), root[0])
    assert serialise(root) == "<domain><a/><new>\n</new></domain>\n"


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_what_was_inserted_can_be_removed_without_a_trace(index: int) -> None:
    text = "<domain>\n\n  <a/>\n  <!-- about b -->\n\t<b/> \n</domain>\n"
    root = parse_document(text)
    first, second = etree.Element("first"), etree.Element("second")
    insert(root, index, first)
    insert_after(second, first)
    remove(first)
    remove(second)
    assert serialise(root) == text
