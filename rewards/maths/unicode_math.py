"""Unicode mathematics as LaTeX: the first step of reading an answer."""

from __future__ import annotations

import unicodedata

_LATEX = {
    "−": "-", "–": "-", "—": "-", "﹣": "-", "‐": "-", "‑": "-", "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ",
    "∙": r"\cdot ", "•": r"\cdot ", "÷": "/", "∕": "/", "⁄": "/", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ",
    "∈": r"\in ", "∉": r"\notin ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ",
    "≈": r"\approx ", "≡": r"\equiv ", "±": r"\pm ", "∓": r"\mp ", "°": r"\degree ", "º": r"\degree ",
    "∅": r"\emptyset ", "ø": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "∖": r"\setminus ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ",
    "⌉": r"\rceil ", "⟨": r"\langle ", "⟩": r"\rangle ", "〈": r"\langle ", "〉": r"\rangle ", "∠": r"\angle ",
    "△": r"\triangle ", "∨": r"\lor ", "∧": r"\land ", "…": r"\ldots ", "√": r"\uroot ", "∛": r"\ucbrt ",
    "∜": r"\uqdrt ", "⇒": r"\Rightarrow ", "⟹": r"\Rightarrow ", "→": r"\rightarrow ", "∴": " ", "✓": "", "✔": "",
    "✅": "", "\ufe0f": "", "’": "'", "′": "'", "″": "''", "“": '"', "”": '"', "【": "[", "】": "]", "∶": ":", "∣": "|",
    "¢": r"\text{ cents}", "∫": r"\int ",
}  # fmt: skip


def ascii_math(text: str) -> str:
    """Unicode mathematics as LaTeX.

    >>> ascii_math("x² ≤ ½"), ascii_math("√2"), ascii_math("Δx₁₂")
    ('x^{2} \\\\le  \\\\frac{1}{2}', '\\\\uroot 2', '\\\\Delta x_{12}')
    """
    if text.isascii():
        return text
    out: list[str] = []
    raised = ""  # "^" or "_" while in a run of raised or lowered characters
    for char in text:
        kind, _, code = unicodedata.decomposition(char).partition("> ")
        mark = {"<super": "^", "<sub": "_"}.get(kind if char not in "ºª™" else "", "")
        if mark != raised:
            out.append(("}" if raised else "") + (mark + "{" if mark else ""))
            raised = mark
        out.append(_one_character(chr(int(code.split()[0], 16))) if mark else _one_character(char))
    return "".join(out) + ("}" if raised else "")


def _one_character(char: str) -> str:
    if char.isascii():
        return char
    if char in _LATEX:
        return _LATEX[char]
    name = unicodedata.name(char, "")
    if name.startswith(("GREEK SMALL LETTER ", "GREEK CAPITAL LETTER ")):
        letter = name.split()[-1].lower().replace("lamda", "lambda")
        return "\\" + (letter if "SMALL" in name else letter.capitalize()) + " "
    parts = unicodedata.decomposition(char).split()
    if parts and parts[0] == "<fraction>":
        top, _, bottom = "".join(chr(int(code, 16)) for code in parts[1:]).partition("⁄")
        return f"\\frac{{{top}}}{{{bottom}}}" if bottom else char
    if unicodedata.category(char) == "Cf":  # zero width, direction marks
        return ""
    plain = unicodedata.normalize("NFKC", char)
    if unicodedata.category(char) == "Nd":
        return str(unicodedata.decimal(char))
    return _one_character(plain) if plain != char and len(plain) == 1 else plain
