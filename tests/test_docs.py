"""The code in the README and the docs runs, block after block."""

import re
import warnings
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_blocks(document, blocks):
    """Runs the page's code, block after block in one namespace, and gives that."""
    found = re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.M | re.S)
    assert len(found) == blocks
    scope = {"__name__": "a_document"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for block in found:
            exec(compile(block, document, "exec", dont_inherit=True), scope)
    return scope


def test_readme_code_runs():
    scope = run_blocks("README.md", 3)
    assert list(scope["trained"].state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert any(bool((leaf != 0).any()) for leaf in scope["grads"]["kernels"]["0"][0].values())
    assert scope["result"].ledger.total_flops > 0


def test_the_page_on_growing_runs():
    scope = run_blocks("docs/growing.md", 5)
    assert scope["result"].records[-1].event == "end" and scope["result"].checkpoint.done == 120


def test_the_page_on_sharding_runs():
    scope = run_blocks("docs/sharding.md", 5)
    assert scope["result"].model.structure.placement is not None
    assert next(iter(scope["trained"].state_dict())) == "0.weight"


def test_the_page_on_the_way_back_runs():
    scope = run_blocks("docs/leaving.md", 10)
    assert list(scope["folded"].esper_folding["kept"]) == ["3"]
    assert len(scope["keys"].missing_keys) == 0
    assert "kernels" in scope["variables"]["params"]["backbone"]
    assert bool(scope["module"].mean.grad.any()) and scope["back"].params["host"].keys() == scope["state"].keys() - {
        key for key in scope["state"] if "grown" in key
    }


def test_the_page_on_saving_runs():
    scope = run_blocks("docs/saving.md", 4)
    assert scope["result"].checkpoint.done == 40 and len(scope["loaded"].structure.kernels) == 0
    assert list(scope["trained"].state_dict()) == ["0.weight", "0.bias", "3.weight", "3.bias"]


def test_the_page_on_telemetry_runs():
    scope = run_blocks("docs/telemetry.md", 4)
    assert [event.sequence for event in scope["events"]] == list(range(len(scope["events"])))


def test_the_page_on_blueprints_runs():
    scope = run_blocks("docs/blueprints.md", 2)
    assert scope["cost"].parameters == 4 * 8 + 8 + 8 * 6 + 6


def test_the_page_on_remote_control_runs():
    scope = run_blocks("docs/remote-control.md", 3)
    told = [record.reason for record in scope["alone"].records if record.event == "remote"]
    assert told and all("the local default decides" in reason for reason in told)


def test_the_page_on_configuration_runs():
    scope = run_blocks("docs/configuration.md", 3)
    assert scope["config"].database.username == "urza" and scope["result"].checkpoint.done == 20


def test_the_page_on_the_library_runs():
    scope = run_blocks("docs/library.md", 3)
    assert scope["grown"].structure.kernels[0].blueprint == "mlp" and scope["found"].gain > 0


def test_the_page_on_the_report_runs():
    scope = run_blocks("docs/report.md", 3)
    assert scope["page"].read_text().startswith("<!doctype html>") and (scope["folder"] / "lanes.svg").exists()
    assert "Sequential: 46 parameters" in str(scope["shown"])


def test_every_file_a_document_links_to_exists():
    for document in [ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"
