"""One HTML page that holds its styles, scripts and data, and loads nothing: the frame of both reports.

Everything a model, a data set or a recipe wrote is untrusted. It enters a page in two ways only: through `html.escape`, or
as JSON in a data block in which `<`, `>` and `&` are `\\u` escapes, which the scripts turn into text nodes. A content
security policy that names the hashes of the page's own script and style forbids everything else, inline handlers and
every network request included, should an escape ever be forgotten.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

Asset = tuple[str, str]  # package, file name


def document(
    *,
    title: str,
    kind: str,
    sections: Mapping[str, str],
    body: Asset,
    values: Mapping[str, str],
    styles: Sequence[Asset],
    scripts: Sequence[Asset],
    data: Any,
    footer: str = "",
) -> str:
    """The page `title · llmrl kind`. `sections` are the bar's links, anchor -> words.

    `body` is a template that gets `values`, which are HTML; `title` and `footer` are escaped here, and the page's script
    finds `data` in its JSON block.
    """
    style, script = ("\n".join(map(_asset, one)) for one in (styles, scripts))
    return Template(_asset(("llmrl.report", "frame.html"))).substitute(
        policy=f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        style=style,
        script=script,
        data=json_block(data),
        title=escape(title),
        kind=kind,
        links="".join(f'<a href="#{anchor}">{words}</a>' for anchor, words in sections.items()),
        body=Template(_asset(body)).substitute(values),
        footer=escape(footer),
    )


def json_block(value: Any) -> str:
    """`value` as JSON that is safe inside a script element: no `<`, `>`, `&` and no line separators.

    >>> json_block({"a": "</script>"})
    '{"a":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def clipped(text: str, longest: int) -> str:
    """`text`, its middle left out beyond `longest` characters, which it then says."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"


def _asset(asset: Asset) -> str:
    package, name = asset
    return files(package).joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
