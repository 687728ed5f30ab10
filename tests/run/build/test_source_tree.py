"""What is sent for a module: its folder, or the smallest one that holds what its build needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kmlab.common.errors import ConfigError
from kmlab.config.lab import load_lab
from kmlab.config.run_options import Options
from kmlab.run.build import source_tree
from kmlab.run.build.source_tree import SourceTree, find_tree, widen


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a module in a folder of its own, and a lab.yaml at the top."""
    top = tmp_path / "project"
    (top / "drivers/probe").mkdir(parents=True)
    (top / "common").mkdir()
    (top / "common/numbers.h").write_text("#define NUMBER 42\n")
    (top / "lab.yaml").write_text("name: t\nguests:\n  debian: {image: debian-12}\n")
    (top / "drivers/probe/Makefile").write_text("obj-m := probe.o\n")
    (top / "drivers/probe/probe.c").write_text("int a;\n")
    return top


def tree_of(project: Path, options: Options | None = None, folder: str = "drivers/probe") -> SourceTree:
    lab = load_lab(project / "lab.yaml")
    return find_tree(lab, lab.module_for(project / folder), options or Options())


def test_a_folder_that_needs_nothing_is_sent_alone(project: Path) -> None:
    tree = tree_of(project)
    assert (tree.root, str(tree.below), tree.needed) == (project / "drivers/probe", ".", "")


def test_the_smallest_folder_that_holds_an_included_header_is_sent(project: Path) -> None:
    (project / "drivers/shared.h").touch()
    (project / "drivers/probe/probe.c").write_text('#include "../shared.h"\n')
    assert tree_of(project).root == project / "drivers"
    (project / "drivers/probe/probe.c").write_text('#include "../../common/numbers.h"\n')
    tree = tree_of(project)
    assert (tree.root, str(tree.below)) == (project, "drivers/probe")
    assert tree.needed == "../../common/numbers.h"
    assert str(tree.in_guest("probe")) == "/var/lib/kmlab/modules/probe/drivers/probe"


def test_what_a_file_above_needs_is_sent_too(project: Path) -> None:
    (project / "drivers/probe/probe.c").write_text('#include "../shared.h"\n')
    (project / "drivers/shared.h").write_text('#include "../common/numbers.h"\n')
    assert tree_of(project).root == project


def test_a_makefile_s_own_words_count(project: Path) -> None:
    (project / "VERSION").write_text("1\n")
    (project / "drivers/probe/Makefile").write_text("V := $(shell cat ../../VERSION)\nobj-m := probe.o\n")
    assert tree_of(project).root == project


def test_what_is_not_there_makes_nothing_larger(project: Path) -> None:
    (project / "drivers/probe/Makefile").write_text("-include ../local.mk\nobj-m := probe.o\n")
    assert tree_of(project).levels == 0


def test_a_link_that_leads_out_is_followed_by_the_root_and_an_absolute_one_is_not(project: Path) -> None:
    (project / "drivers/probe/numbers.h").symlink_to("/etc/hostname")
    assert tree_of(project).levels == 0
    (project / "drivers/probe/numbers.h").unlink()
    (project / "drivers/probe/numbers.h").symlink_to("../../common/numbers.h")
    assert tree_of(project).root == project


def test_nothing_beyond_the_git_repository_is_sent(project: Path) -> None:
    (project / "drivers/.git").mkdir()
    (project / "drivers/probe/probe.c").write_text('#include "../../common/numbers.h"\n')
    tree = tree_of(project)
    assert tree.levels == 0 and "larger than the git repository" in tree.refused


def test_a_large_root_is_sent_only_on_demand(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "drivers/probe/probe.c").write_text('#include "../../common/numbers.h"\n')
    monkeypatch.setattr(source_tree, "_MOST_FILES", 3)
    tree = tree_of(project)
    assert tree.levels == 0 and "holds more than 3 files" in tree.refused
    assert tree_of(project, Options(root=project)).root == project


def test_a_home_or_a_shared_folder_is_never_sent_by_itself(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "drivers/probe/probe.c").write_text('#include "../../common/numbers.h"\n')
    monkeypatch.setenv("HOME", str(project))
    assert "holds more than the module's project" in tree_of(project).refused
    monkeypatch.setenv("HOME", "/nowhere")
    project.chmod(0o1777)
    assert "holds more than the module's project" in tree_of(project).refused


def test_a_root_in_lab_yaml_is_sent_whatever_the_build_needs(project: Path) -> None:
    with (project / "lab.yaml").open("a") as file:
        file.write("modules:\n  probe: {source: drivers/probe, root: drivers}\n")
    tree = tree_of(project)
    assert (tree.root, tree.levels, tree.needed) == (project / "drivers", 1, "")


def test_a_root_that_does_not_hold_the_folder_is_an_error(project: Path) -> None:
    with pytest.raises(ConfigError, match="does not hold the module's folder"):
        tree_of(project, Options(root=project / "common"))
    with pytest.raises(ConfigError, match="no such folder"):
        tree_of(project, Options(root=project / "absent"))


def test_the_log_of_a_failed_build_can_ask_for_more(project: Path) -> None:
    tree = tree_of(project)
    log = "make[2]: *** No rule to make target '../../common/numbers.h', needed by 'probe.o'.  Stop.\n"
    wider = widen(tree, log)
    assert wider is not None and wider.root == project
    assert widen(wider, log) is None
    assert widen(tree, "cat: ../../absent: No such file or directory\n") is None


def test_a_log_that_names_the_host_s_files_gets_none(project: Path) -> None:
    log = "cat: ../../../../../../../../../../../../etc/passwd: No such file or directory\n"
    assert widen(tree_of(project), log) is None
    assert widen(dataclasses.replace(tree_of(project)), "a: /etc/../etc/passwd: No such file\n") is None
