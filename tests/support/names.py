"""Names that a taxonomy may give, each awkward for something that shows or stores it."""

DRAWABLE = (
    "cost $x^$ scams",
    "cost $",
    "pay $$ now",
    "a | b",
    "rate [50%] [bold]",
    "x <b> & \"quoted\" 'single'",
    "a_b_c",
    "the `tick` *star* ~~gone~~",
    "v1.5.x",
    "a {brace} {{ jinja }} {% raw %}",
    "a %s %d %(x)s",
    "d: e # f",
    "café",
    "насилие",
    "暴力",
    "عنف",
    "क्षति",
    "fire 🔥",
    "x" * 120,
    "keys",
)
