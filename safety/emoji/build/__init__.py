"""Building of the embedded world: drawings, training and measurement of the zoo. Nothing at run time needs it."""
