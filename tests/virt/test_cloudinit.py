"""Test the seed that makes a base of an image, as cloud-init reads it."""

from __future__ import annotations

import yaml

from kmlab.config import catalog
from kmlab.virt.cloudinit import seed_files

KEY = "ssh-ed25519 AAAA kmlab"


def files(user_data: str = "", script: str = "", **values: list[str]) -> dict[str, str]:
    return seed_files(user_data, script=script, values=values, authorized_key=KEY, instance="0123.abc")


def config(user_data: str = "", script: str = "", **values: list[str]) -> dict[str, object]:
    text = files(user_data, script, **values)["user-data"]
    assert text.startswith("#cloud-config\n")
    loaded = yaml.safe_load(text)
    assert isinstance(loaded, dict)
    return loaded


def test_the_three_files_are_yaml() -> None:
    made = files()
    assert set(made) == {"user-data", "meta-data", "network-config"}
    assert yaml.safe_load(made["meta-data"]) == {"instance-id": "0123.abc", "local-hostname": "lab"}
    assert yaml.safe_load(made["network-config"])["ethernets"]["all"] == {"match": {"name": "e*"}, "dhcp4": True}


def test_the_image_s_user_and_root_accept_the_user_s_key_and_root_is_not_locked() -> None:
    assert config()["ssh_authorized_keys"] == [KEY]
    assert config()["users"] == ["default", {"name": "root", "lock_passwd": False, "ssh_authorized_keys": [KEY]}]


def test_the_recipe_s_own_configuration_is_kept() -> None:
    made = config("users: [me]\nwrite_files: [{path: /a}]\nruncmd: [[sh, /run/kmlab/bake.sh]]\n", "true\n")
    assert made["users"][0] == "me"  # type: ignore[index]
    assert [entry["path"] for entry in made["write_files"]] == ["/a", "/run/kmlab/bake.sh"]  # type: ignore[attr-defined]
    assert made["runcmd"] == [["sh", "/run/kmlab/bake.sh"]]


def test_values_replace_their_names_in_the_script() -> None:
    made = config("", "install @PACKAGES@ '@HEADERS@'\n", PACKAGES=["gcc", "make"], HEADERS=["linux-headers-{release}"])
    script = made["write_files"][0]  # type: ignore[index]
    assert script["content"] == "install gcc make 'linux-headers-{release}'\n"
    assert script["permissions"] == "0700"


def test_a_script_with_every_kind_of_character_survives() -> None:
    text = "a: 'b'\n\t\"c\" \\n #d\n---\n{e}\n" + "x" * 3000 + "\n"
    assert config("", text)["write_files"][0]["content"] == text  # type: ignore[index]


def test_the_recipe_of_debian_makes_a_seed_that_bakes() -> None:
    recipe = catalog.load_recipe("debian")
    values = {"PACKAGES": recipe.packages, "HEADERS": [recipe.headers], "CMDLINE": recipe.cmdline.split()}
    values |= {"OPTIONAL": recipe.optional, "KERNEL": [], "EXACT": []}
    made = seed_files(
        recipe.user_data,
        script=catalog.insert_configure(recipe.bake, recipe),
        values=values,
        authorized_key=KEY,
        instance="a",
    )
    loaded = yaml.safe_load(made["user-data"])
    script = loaded["write_files"][-1]["content"]
    assert ["sh", "/run/kmlab/bake.sh"] in loaded["runcmd"]
    assert "console=ttyS0,115200" in script
    assert not any(f"@{name}@" in script for name in values)
