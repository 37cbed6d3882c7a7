"""Floor 2: drawings. Plain data in, SVG out: no files, no clock, no torch, no JAX.

`curves`, `lanes`, `network` and `bar` each draw one thing for one width; `style` is the CSS they share, and `notebook`
puts a drawing where a notebook shows it. Everything that comes from data is escaped in `markup`, and nowhere else.
"""
