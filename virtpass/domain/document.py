"""Domain XML as a document: parsed with care, edited so that nothing else moves, written back.

All text that is shown or compared went through `serialise`: libvirt writes attributes in single quotes, lxml
in double quotes, so a comparison with libvirt's own text would show every line.
"""

from lxml import etree

from virtpass.system.errors import UsageError

# libvirt's own limit for a string on its way to and from the daemon (VIR_NET_MESSAGE_STRING_MAX in
# src/rpc/virnetprotocol.x).
MAX_XML = 4 << 20

_INDENTATION = "  "


def parse_document(xml: str, tag: str = "domain", subject: str = "the domain's XML") -> etree._Element:
    """Parse a document.

    Args:
        xml: its text.
        tag: the root element that it must have.
        subject: what the text is, for messages.

    Returns:
        the root element.

    Raises:
        UsageError: the text is empty, too large, not well-formed, has a document type (with which entities
            would come, and documents that explode), or another root element.
    """
    if not xml.strip():
        raise UsageError("xml-empty", f"{subject} is empty")
    if len(xml) > MAX_XML:
        raise UsageError(
            "xml-size", f"{subject} is larger than {MAX_XML >> 20} MiB, the most that libvirt takes"
        )
    # The encoding is given, so that a declaration in the text cannot change it.
    parser = etree.XMLParser(
        encoding="utf-8",
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        huge_tree=False,
        strip_cdata=False,
    )
    try:
        root = etree.fromstring(xml.encode("utf-8"), parser)
    except UnicodeEncodeError as error:
        raise UsageError("xml-syntax", f"{subject} has bytes that are not UTF-8") from error
    except etree.XMLSyntaxError as error:
        raise UsageError("xml-syntax", f"{subject} is not XML: {error.msg}") from error
    if root.getroottree().docinfo.internalDTD is not None:
        raise UsageError("xml-doctype", f"{subject} has a document type, which libvirt never writes")
    if root.tag != tag:
        raise UsageError("xml-root", f"{subject} has the root element <{root.tag!s}>, not <{tag}>")
    return root


def serialise(root: etree._Element) -> str:
    """Return the text of a whole document, with a line break at its end."""
    return etree.tostring(root.getroottree(), encoding="unicode").rstrip("\n") + "\n"


def normalise(xml: str) -> str:
    """Return the XML of a domain as `serialise` writes it; arguments and errors as `parse_document`."""
    return serialise(parse_document(xml))


def insert(parent: etree._Element, index: int, element: etree._Element) -> None:
    """Insert ``element`` as child number ``index``, indented as its neighbours are.

    A document without line breaks between its elements stays without.
    """
    outer = _line_start(parent)
    if len(parent) and not _has_line_break(parent.text):
        parent.insert(index, element)
        element.tail = None
        return
    inner = _last_line(parent.text) if len(parent) else outer + _INDENTATION
    unit = inner[len(outer) :] if inner.startswith(outer) and inner != outer else _INDENTATION
    if not len(parent):
        parent.text = inner
        element.tail = outer
    elif index >= len(parent):
        parent[-1].tail, element.tail = inner, parent[-1].tail
    else:
        element.tail = inner
    tail = element.tail
    parent.insert(index, element)
    element.tail = tail
    _indent(element, inner, unit)


def insert_after(element: etree._Element, neighbour: etree._Element) -> None:
    """Insert ``element`` right behind ``neighbour``."""
    parent = _parent(neighbour)
    insert(parent, parent.index(neighbour) + 1, element)


def remove(element: etree._Element) -> None:
    """Remove ``element`` with the white space that `insert` gave it."""
    parent = _parent(element)
    if element.getnext() is None:
        previous = element.getprevious()
        if previous is not None:
            previous.tail = element.tail
        elif not (parent.text or "").strip():
            parent.text = None
    parent.remove(element)


def _parent(element: etree._Element) -> etree._Element:
    parent = element.getparent()
    if parent is None:
        raise AssertionError("the root element has no neighbours")
    return parent


def _has_line_break(text: str | None) -> bool:
    return "\n" in (text or "")


def _last_line(text: str | None) -> str:
    """Return the line break and the indentation at the end of ``text``."""
    return "\n" + (text or "").rpartition("\n")[2]


def _line_start(element: etree._Element) -> str:
    """Return the line break and the indentation before ``element``."""
    previous, parent = element.getprevious(), element.getparent()
    before = previous.tail if previous is not None else parent.text if parent is not None else None
    return _last_line(before) if _has_line_break(before) else "\n"


def _indent(element: etree._Element, line_start: str, unit: str) -> None:
    if not len(element) or (element.text or "").strip():
        return
    element.text = line_start + unit
    for child in element:
        child.tail = line_start + unit
        _indent(child, line_start + unit, unit)
    element[-1].tail = line_start
