"""Preparing matplotlib's SVGs for a page. In: a file's bytes, in placeholder colours (`colours.PAGE_PALETTE`). Out: an <svg> element.

Colours become CSS variables, so that one drawing suits light and dark mode; texts take the page's font, and the drawing takes the width
that the page gives it. Ids are prefixed with the figure's name, so that no two figures share one; unused ids are removed.
"""

import re
from xml.etree import ElementTree

from prunetrain.report.colours import CSS_BY_PLACEHOLDER
from prunetrain.report.figures import TOOLTIP_PREFIX

_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_PLACEHOLDER = re.compile(r"#01[0-9a-f]{4}")
_FONT = re.compile(r"font: ([\d.]+px) [^;]*")


def prepare_svg(drawing: bytes, name: str, label: str) -> str:
    """Turn a drawing into an element of a page.

    Args:
        drawing: an SVG file.
        name: of the figure, unique in the page.
        label: what a screen reader says.
    """
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(drawing)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for size in ("width", "height"):
        del root.attrib[size]
    root.attrib |= {"role": "img", "aria-label": label}
    referred = _referred(root)
    for element in root.iter():
        _rename(element, name, referred)
        if "style" in element.attrib:
            element.attrib["style"] = _styled(element.attrib["style"])
    return ElementTree.tostring(root, encoding="unicode")


def _referred(root: ElementTree.Element) -> set[str]:
    texts = (value for element in root.iter() for value in element.attrib.values())
    found = {match for text in texts for match in _REFERENCE.findall(text)}
    return found | {element.attrib[_LINK][1:] for element in root.iter() if _LINK in element.attrib}


def _rename(element: ElementTree.Element, name: str, referred: set[str]) -> None:
    own = element.attrib.pop("id", None)
    if own is not None and own.startswith(TOOLTIP_PREFIX):
        title = ElementTree.Element(f"{{{_SVG}}}title")
        title.text = own.removeprefix(TOOLTIP_PREFIX)
        element.insert(0, title)
    elif own in referred:
        element.attrib["id"] = f"{name}-{own}"
    if link := element.attrib.pop(_LINK, None):
        element.attrib["href"] = f"#{name}-{link[1:]}"
    for key, value in element.attrib.items():
        element.attrib[key] = _REFERENCE.sub(rf"url(#{name}-\1)", value)


def _styled(style: str) -> str:
    return _FONT.sub(r"font-size: \1", _PLACEHOLDER.sub(lambda match: CSS_BY_PLACEHOLDER[match[0]], style))
