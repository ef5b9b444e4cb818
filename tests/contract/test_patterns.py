"""Every pattern of the contract is said in words to who breaks it."""

import re
from pathlib import Path

from millstream.transport.validation import PATTERNS

PROTO = Path(__file__).parents[2] / "proto" / "millstream" / "v1"


def test_every_pattern_has_words() -> None:
    """FL-10: a bare regular expression is no help."""
    texts = [path.read_text() for path in PROTO.glob("*.proto")]
    patterns = {each.replace("\\\\", "\\") for text in texts for each in re.findall(r'pattern(?::| =) "([^"]+)"', text)}
    assert patterns == PATTERNS.keys()
