"""What `pip install kmlab` brings."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.places import REPOSITORY


def test_the_wheel_carries_the_catalogue_and_the_recipes(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(REPOSITORY)],
        check=True,
        timeout=300,
    )
    (wheel,) = tmp_path.glob("kmlab-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "there")
    assert {
        "kmlab/images/debian-12.yaml",
        "kmlab/images/root.sh",
        "kmlab/guests/debian/bake.sh",
        "kmlab/guests/debian/configure.sh",
        "kmlab/py.typed",
        "kmlab/report/formats/page.css",
        "kmlab/report/formats/page.js",
    } <= names
    plugins = subprocess.run(
        [sys.executable, "-m", "pytest", "--fixtures", "-q", "-p", "no:cacheprovider", str(tmp_path / "there")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "there")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "kmlab_run" in plugins.stdout, "pytest finds the plugin by its entry point"
    code = (
        "from kmlab.config import catalog; print(*catalog.image_names()); "
        "catalog.root_script(catalog.load_recipe('debian'), 'k'); "
        "from kmlab.report import json_schema; from kmlab.report.formats import html; "
        "print('GUEST@KERNEL' in str(json_schema.schema('lab')), 'prefers-color-scheme' in html.text([]))"
    )
    listed = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "there", capture_output=True, text=True, check=True
    )
    assert "debian-12" in listed.stdout.split()
    assert listed.stdout.split()[-2:] == ["True", "True"], "descriptions, and the looks of the page"
