"""A fixed sample of the parity suites; `make parity` runs them whole and writes `docs/coverage.md`."""

import warnings

import pytest
from parity import hugging_face, modules, operators, semantics
from parity.case import DOCUMENTED, NONE, PASS
from parity.gaps import GAPS
from parity.judge import judge

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's own databases, as they are imported
    OPERATORS, MODULES, SEMANTICS, MODELS = (suite.cases() for suite in (operators, modules, semantics, hugging_face))


def named(cases, suite):
    gaps = GAPS.get(suite, {})
    return pytest.mark.parametrize("case", [row(case, gaps.get(case.name)) for case in cases])


def row(case, gap):
    marks = [pytest.mark.xfail(strict=True, reason=gap)] if gap else []
    return pytest.param(case, id=case.name, marks=marks)


def check(case):
    if case.skip:
        pytest.skip(case.skip)
    verdict = judge(case)
    assert verdict.values in (PASS, DOCUMENTED), verdict.reason
    assert verdict.gradients in (PASS, DOCUMENTED, NONE), verdict.reason


@named(OPERATORS, "operators")
def test_operators(case):
    check(case)


@named(MODULES, "modules")
def test_modules(case):
    check(case)


@named(SEMANTICS, "semantics")
def test_semantics(case):
    check(case)


@named(MODELS, "hugging_face")
def test_models(case):
    check(case)
