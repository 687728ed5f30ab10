"""Modules that a real guest's kernel refuses, each altered after it was built: why, in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guest.conftest import Lab

SOURCE = """\
#include <linux/init.h>
#include <linux/kobject.h>
#include <linux/module.h>
#include <linux/rational.h>

static int __init refused_init(void)
{
	unsigned long over = 1, under = 1;

	rational_best_approximation(31416, 10000, 100, 100, &over, &under);
	kobject_put(kobject_create_and_add("refused", kernel_kobj));
	pr_info("%lu/%lu\\n", over, under);
	return 0;
}
module_init(refused_init);
MODULE_DESCRIPTION("Refused");
MODULE_LICENSE("GPL");
"""
MAKEFILE = """\
all:
	$(MAKE) -C $(KDIR) M=$(CURDIR)/src modules
	LC_ALL=C {command} src/refused.ko
"""


@pytest.mark.parametrize(
    ("command", "failure", "words"),
    [
        ("sed -i 's/ SMP / SMQ /'", "vermagic", "was built for a kernel configured otherwise"),
        (
            r"sed -i 's/....\x00\x00\x00\x00_printk\x00/1234\x00\x00\x00\x00_printk\x00/'",
            "symbol-version",
            "expects another version of _printk()",
        ),
        (
            "sed -i 's/depends=/depenzs=/'",
            "unknown-symbol",
            "needs rational_best_approximation(), which the module rational exports: load rational first",
        ),
        ("sed -i 's/license=GPL/license=MIT/'", "gpl-only", "for GPL modules only, and its licence is 'MIT'"),
        ("strip --strip-all", "format", "stripped of its symbols"),
    ],
    ids=["vermagic", "symbol-version", "unknown-symbol", "gpl-only", "format"],
)
def test_a_refusal_is_said_in_plain_words(
    repository: Lab, tmp_path: Path, command: str, failure: str, words: str
) -> None:
    folder = tmp_path / "refused"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "refused.c").write_text(SOURCE)
    (folder / "src" / "Kbuild").write_text("obj-m := refused.o\n")
    (folder / "Makefile").write_text(MAKEFILE.format(command=command))
    # A fresh guest: the module before may have been refused after what it depends on was loaded.
    result = repository("run", str(folder), "--fresh", "--json", code=1).result
    assert (result["outcome"], result["failure"]) == ("load-failed", failure), result["reason"]
    assert words in result["reason"]
