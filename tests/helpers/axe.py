"""Findings of axe-core, which checks pages for people with disabilities."""

import pytest


def findings(page) -> list[str]:
    """Returns one line for each finding on a page of playwright."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    violations = axe.run(page).response["violations"]
    return [f"{found['id']}: {found['help']}: {[node['html'][:150] for node in found['nodes']]}" for found in violations]
