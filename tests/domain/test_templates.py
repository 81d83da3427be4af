"""Templates: schema-valid, filled, and overridden by root only."""

import os
from pathlib import Path

import pytest
from lxml import etree

from tests.domain.documents import domain, pci
from virtpass.domain.document import serialise
from virtpass.domain.plan import plan_attach
from virtpass.domain.templates import (
    OVERRIDES,
    Templates,
    hostdev_element,
    load_templates,
    packaged_templates,
    root_port_element,
)
from virtpass.pci.identity import Identity
from virtpass.system import resources
from virtpass.system.errors import FailedError, RefusedError, UsageError
from virtpass.system.host import Host

SCHEMAS = Path("/usr/share/libvirt/schemas")
IDENTITY = Identity(0x1234, 0x1111, 0x1AF4, 0x1100)


def validate(element: etree._Element, kind: str) -> None:
    """Hold one device against libvirt's schema; that of a whole domain would not name the culprit."""
    if not (SCHEMAS / "domaincommon.rng").is_file():
        pytest.skip("libvirt's schemas are not installed")
    grammar = f"""
        <grammar xmlns="http://relaxng.org/ns/structure/1.0"
                 datatypeLibrary="http://www.w3.org/2001/XMLSchema-datatypes">
          <include href="{SCHEMAS}/domaincommon.rng"/>
          <start><ref name="{kind}"/></start>
        </grammar>"""
    etree.RelaxNG(etree.fromstring(grammar)).assertValid(element)


def test_packaged_templates_are_valid() -> None:
    templates = packaged_templates()
    validate(etree.fromstring(templates.hostdev), "hostdev")
    validate(etree.fromstring(templates.root_port), "controller")


@pytest.mark.parametrize("source", ["0000:01:00.0", "ffff:ff:1f.7"])
@pytest.mark.parametrize("guest", [None, "0000:05:00.0", "0000:00:1f.7"])
def test_a_filled_hostdev_is_valid(source: str, guest: str | None) -> None:
    text = packaged_templates().hostdev
    element = hostdev_element(text, pci(source), pci(guest) if guest else None, 9_000_000)
    validate(element, "hostdev")


def test_a_filled_hostdev_is_written_as_libvirt_writes_it() -> None:
    element = hostdev_element(packaged_templates().hostdev, pci("10000:e1:00.1"), pci("05:00.1"), 9_000_000)
    assert etree.tostring(element, encoding="unicode").strip() == (
        '<hostdev mode="subsystem" type="pci" managed="yes">\n'
        "  <source>\n"
        '    <address domain="0x10000" bus="0xe1" slot="0x00" function="0x1"/>\n'
        "  </source>\n"
        '  <address type="pci" domain="0x0000" bus="0x05" slot="0x00" function="0x1"/>\n'
        "</hostdev>"
    )


@pytest.mark.parametrize(
    ("version", "expected"), [(9_000_000, None), (9_999_999, None), (10_000_000, "vfio-pci")]
)
def test_the_driver_is_named_where_libvirt_would_choose_another(version: int, expected: str | None) -> None:
    element = hostdev_element(packaged_templates().hostdev, pci("01:00.0"), None, version)
    driver = element.find("driver")
    assert (None if driver is None else driver.get("model")) == expected


def test_a_filled_root_port_is_valid() -> None:
    element = root_port_element(packaged_templates().root_port, 255)
    assert element.get("index") == "255"
    validate(element, "controller")


def override(root: Path, name: str, text: str, mode: int = 0o644) -> Path:
    path = root / OVERRIDES.lstrip("/") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in (root / "etc", root / "etc/virtpass", path.parent):
        folder.chmod(0o755)
    path.write_text(text)
    path.chmod(mode)
    return path


ROM_OFF = """<hostdev mode='subsystem' type='pci' managed='yes'>
  <source><address domain='0' bus='0' slot='0' function='0'/></source>
  <rom bar='off'/>
  <address type='pci' domain='0' bus='0' slot='0' function='0'/>
</hostdev>"""


def test_a_template_of_the_user_is_taken(tmp_path: Path) -> None:
    override(tmp_path, "hostdev.xml", ROM_OFF)
    templates = load_templates(Host(str(tmp_path)))
    assert templates == Templates(ROM_OFF, packaged_templates().root_port, packaged_templates().metadata)
    plan = plan_attach(domain(), [(pci("01:00.0"), IDENTITY)], 9_000_000, templates)
    assert '<rom bar="off"/>' in plan.diff


def test_without_overrides_the_packaged_ones_are_taken(tmp_path: Path) -> None:
    assert load_templates(Host(str(tmp_path))) == packaged_templates()


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_template_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    override(tmp_path, "hostdev.xml", ROM_OFF, mode)
    with pytest.raises(RefusedError) as caught:
        load_templates(Host(str(tmp_path)))
    assert "chmod go-w /etc/virtpass/xml_templates/hostdev.xml" in caught.value.remedy


def test_a_template_in_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    override(tmp_path, "hostdev.xml", ROM_OFF).parent.chmod(0o777)
    with pytest.raises(RefusedError):
        load_templates(Host(str(tmp_path)))


def test_a_template_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(override(tmp_path, "hostdev.xml", ROM_OFF), 65534, 65534)
    with pytest.raises(RefusedError):
        load_templates(Host(str(tmp_path)))


@pytest.mark.parametrize("kind", ["link", "directory", "fifo"])
def test_a_template_that_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = override(tmp_path, "hostdev.xml", ROM_OFF)
    path.unlink()
    if kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(RefusedError):
        load_templates(Host(str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hostdev.xml", "<hostdev"),
        ("hostdev.xml", "<interface/>"),
        ("hostdev.xml", "<hostdev mode='subsystem' type='pci'/>"),
        ("hostdev.xml", "<!DOCTYPE hostdev [<!ENTITY a 'b'>]>" + ROM_OFF),
        ("root-port.xml", "<controller type='pci' model='pcie-root'/>"),
        ("metadata.xml", "<passthrough/>"),
        ("metadata.xml", "<passthrough xmlns='urn:virtpass:passthrough:1'/>"),
        (
            "metadata.xml",
            "<passthrough xmlns='urn:virtpass:passthrough:1'><policy display='x'/></passthrough>",
        ),
    ],
)
def test_a_broken_template_is_named(tmp_path: Path, name: str, text: str) -> None:
    override(tmp_path, name, text)
    templates = load_templates(Host(str(tmp_path)))
    with pytest.raises(UsageError) as caught:
        plan_attach(domain(ports=2), [(pci("01:00.0"), IDENTITY)], 9_000_000, templates)
    assert name in caught.value.line or "metadata" in caught.value.line


def test_a_template_that_is_not_text(tmp_path: Path) -> None:
    override(tmp_path, "hostdev.xml", "").write_bytes(b"<hostdev>\xff</hostdev>")
    with pytest.raises(UsageError):
        load_templates(Host(str(tmp_path)))


def test_comments_around_a_template_do_not_get_into_the_domain() -> None:
    plan = plan_attach(domain(), [(pci("01:00.0"), IDENTITY)], 9_000_000)
    assert "<!--" not in plan.after
    assert "<!--" in packaged_templates().hostdev
    assert serialise(etree.fromstring(packaged_templates().hostdev)).startswith("<!--")


def test_an_installation_without_its_templates_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "virtpass"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr("virtpass.__file__", str(package / "__init__.py"))
    (package.parent / "xml_templates").mkdir()  # somebody else's
    with pytest.raises(FailedError):
        resources.directory("xml_templates")
    (package / "xml_templates").mkdir()
    assert resources.directory("xml_templates") == package / "xml_templates"
