"""The code in the README runs, block after block."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_readme_code_runs():
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(blocks) == 2
    scope = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)
    assert list(scope["trained"].state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert any(bool((leaf != 0).any()) for leaf in scope["grads"]["kernels"]["0"][0].values())


def test_every_file_a_document_links_to_exists():
    for document in [ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"
