"""How may a text from outside be shown on a terminal, in a table or in a figure?"""


def printable(text: str, most: int = 60) -> str:
    """One line, no control or direction characters, not too long."""
    clean = "".join(" " if character.isspace() else character for character in text)
    clean = "".join(character if character.isprintable() else "�" for character in clean)
    return clean if len(clean) <= most else clean[: most - 1] + "…"
