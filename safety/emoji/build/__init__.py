"""The workshop of the embedded world: what draws, trains and measures the zoo. Nothing at run time needs it."""
