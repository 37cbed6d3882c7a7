"""The report: what runs did, as one HTML page that needs nothing else.

`write(folders, path)` and `render(runs)`; `read.run(folder)` reads what a run wrote, `timeline` works out from its
events what happened, the modules of `sections` each make one part of the page, `figures` draws for papers.
Neither torch nor JAX is imported. Whatever the run folders hold is data: it is escaped, cut to size, and never obeyed.
"""

from esper.report.page import render
from esper.report.read import RunData, run
from esper.report.write import write

__all__ = ["RunData", "render", "run", "write"]
