"""What the scripted engine answers, by what it is asked."""

from __future__ import annotations

FAULT = (" always", " usually")
MARKDOWN = """\
## Merging two sorted lists

Walk over **both** lists at once, and always take the *smaller* head. Each element is looked
at once, so this takes `O(n + m)` time.

```python
def merge(left: list[int], right: list[int]) -> list[int]:
    merged, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            merged.append(left[i])
            i += 1
        else:
            merged.append(right[j])
            j += 1
    return merged + left[i:] + right[j:]
```

| case | result |
|---|---|
| both empty | `[]` |
| one empty | the other |

1. Equal elements keep their order.
2. Neither list is changed.

See [the documentation](https://docs.python.org/3/library/heapq.html) of `heapq.merge`.
"""
HOSTILE = """\
<script>window.hacked = 1</script>
<img src=x onerror="window.hacked = 2">
<svg onload="window.hacked = 3"><iframe srcdoc="<script>parent.hacked = 4</script>"></iframe>
[a](javascript:window.hacked=5) [b](JaVaScRiPt&colon;window.hacked=6) 
[c](data:text/html,<script>)
![d](https://evil.example/pixel.png) ![e" onerror="window.hacked=7](x)
<a href="javascript:window.hacked=8">f</a> <style>body{display:none}</style>
<form action="https://evil.example"><input name=q><button>send</button></form>
<math><mtext><table><mglyph><style><img src=x onerror=window.hacked=9></style>
</mglyph></table></mtext></math>
<details open ontoggle=window.hacked=10> <body onload=window.hacked=11>
<base href="https://evil.example/">
<meta http-equiv="refresh" content="0;url=https://evil.example/"> <object data="x"></object>
```"><img src=x onerror=window.hacked=12>
code
```
Still here.
"""


_LONG = {
    "mixed": "".join(
        f"Line {n} is a **bold** word, an *italic* one and a `mark`.\n\n" for n in range(500)
    )
    + "```python\n"
    + "x = f(x, 1) + g(y)  # and so on\n" * 500
    + "```\n",
    "one line": "so it goes on and on, " * 1700,
}


def _call(city: str) -> str:
    return f'<tool_call> {{"name": "weather", "arguments": {{"city": "{city}"}}}} </tool_call>'


def text_of(asked: str, *, alone: bool) -> str:
    """Return the answer to what the user asked. With "planted" in it, both ends differ."""
    if "planted" in asked and alone:
        return MARKDOWN.replace(*FAULT)
    if "hostile" in asked:
        return HOSTILE
    if "ten thousand" in asked:
        return _LONG[asked.strip().partition(": ")[2]]
    if "long" in asked:
        return "".join(f"Line {n} goes **on** and `on`.\n\n" for n in range(2000))
    if "tool" in asked:
        cities = ("Oslo", "Rome") if "twice" in asked else ("Oslo",)
        return " ".join(map(_call, cities))
    if "think" in asked:
        return "<think>Let me see.</think>The answer is 42."
    return MARKDOWN
