"""`onebase adapters ...` on a real registry with a tiny base: what is printed, kept and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy import cli
from deploy.exits import Exit

Adapter = Callable[..., Path]


@pytest.fixture
def onebase(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line: (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


Onebase = Callable[..., tuple[int, str, str]]


def read(onebase: Onebase, *arguments: object) -> Any:
    code, out, err = onebase(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_publish_show_and_list(onebase: Onebase, adapter: Adapter) -> None:
    code, out, err = onebase(
        "adapters", "publish", "support", adapter(), "--alias", "production", "--why", "first"
    )
    assert code == 0, err
    assert out.splitlines()[0].startswith("support@1 is in the registry: lora, rank 2, sha256:")
    assert "support:production is support@1" in out

    code, out, _ = onebase("adapters", "show", "support")
    assert code == 0
    facts = dict(line.split(maxsplit=1) for line in out.splitlines() if not line.startswith(" "))
    assert facts["reference"] == "support@1"
    assert facts["lora"].startswith("rank 2, alpha 4,")
    assert facts["base"].startswith("tiny-llama (")
    assert facts["why"] == "first"

    code, out, _ = onebase("adapters", "list")
    assert [line.split()[:4] for line in out.splitlines()] == [
        ["name", "newest", "production", "aliases"],
        ["support", "1", "1", "-"],
    ]


def test_the_same_content_is_no_new_version(onebase: Onebase, adapter: Adapter) -> None:
    onebase("adapters", "publish", "support", adapter())
    code, out, _ = onebase("adapters", "publish", "support", adapter())
    assert code == 0
    assert out.startswith("support@1 has this content already")
    assert len(read(onebase, "adapters", "list", "support")["versions"]) == 1


def test_json_of_every_listing(onebase: Onebase, adapter: Adapter) -> None:
    manifest = read(onebase, "adapters", "publish", "support", adapter(), "--by", "ann")
    assert (manifest["schema"], manifest["name"], manifest["version"], manifest["by"]) == (
        1,
        "support",
        1,
        "ann",
    )
    assert read(onebase, "adapters", "show", f"support@{manifest['digest']}") == manifest
    assert read(onebase, "adapters", "alias", "support", "canary", 1)["targets"] == [
        {"version": 1, "weight": 1.0}
    ]
    listed = read(onebase, "adapters", "list")["adapters"]
    assert listed == [
        {
            "name": "support",
            "versions": [{**manifest, "retired": False}],
            "aliases": {"canary": [{"version": 1, "weight": 1.0}]},
        }
    ]
    assert [
        entry["seq"]
        for entry in read(onebase, "adapters", "history", "support", "--alias", "canary")["entries"]
    ] == [1]
    checked = read(onebase, "adapters", "check", adapter())
    assert (checked["servable"], checked["rank"]) == (True, 2)


def test_alias_rollback_and_history(onebase: Onebase, adapter: Adapter) -> None:
    for seed in (1, 2):
        onebase("adapters", "publish", "support", adapter(seed=seed), "--alias", "production")
    code, out, _ = onebase("adapters", "rollback", "support", "--why", "worse on refunds")
    assert (code, out) == (0, "support:production is support@1\n")
    code, out, _ = onebase("adapters", "history", "support")
    lines = [line.split() for line in out.splitlines()]
    assert [line[1] for line in lines[1:]] == ["1", "2", "1"]
    assert out.rstrip().endswith("worse on refunds")
    assert onebase("adapters", "alias", "support", "production", 2)[1] == "support:production is support@2\n"
    assert onebase("adapters", "unalias", "support", "production")[1].startswith(
        "support:production is dropped"
    )
    assert onebase("adapters", "show", "support:production")[0] == Exit.NOT_FOUND


def test_retire_and_restore(onebase: Onebase, adapter: Adapter) -> None:
    for seed in (1, 2):
        onebase("adapters", "publish", "support", adapter(seed=seed))
    code, out, _ = onebase("adapters", "retire", "support@2", "--why", "leaks")
    assert code == 0
    assert "`onebase adapters restore support@2` brings it back" in out
    code, _, err = onebase("adapters", "show", "support@2")
    assert code == Exit.CONFLICT
    assert "leaks" in err
    table = [line.split()[:2] for line in onebase("adapters", "list", "support")[1].splitlines()]
    assert table[1:] == [["1", "served"], ["2", "retired"]]
    assert onebase("adapters", "restore", "support@2")[:2] == (0, "support@2 is served again\n")
    assert onebase("adapters", "show", "support")[1].startswith("reference  support@2\n")


def test_a_name_with_only_retired_versions_is_still_listed(onebase: Onebase, adapter: Adapter) -> None:
    onebase("adapters", "publish", "support", adapter())
    onebase("adapters", "retire", "support@1")
    assert onebase("adapters", "list")[1].splitlines()[1].split()[:2] == ["support", "retired"]


def test_one_version_has_to_be_named_to_retire_it(onebase: Onebase, adapter: Adapter) -> None:
    onebase("adapters", "publish", "support", adapter())
    code, _, err = onebase("adapters", "retire", "support")
    assert code == Exit.USAGE
    assert "support@1" in err


def test_what_cannot_be_served_is_refused_with_its_reason(onebase: Onebase, adapter: Adapter) -> None:
    for command in (("adapters", "check"), ("adapters", "publish", "support")):
        code, out, err = onebase(*command, adapter(dora=True))
        assert (code, out) == (Exit.REFUSED, "")
        assert "DoRA" in err
        assert err.count("\n") == 1
    assert onebase("adapters", "list")[2].startswith("the registry is empty")


def test_a_rank_over_the_limit_is_refused(onebase: Onebase, adapter: Adapter) -> None:
    assert onebase("adapters", "check", adapter(rank=4), "--max-rank", 2)[0] == Exit.REFUSED
    assert onebase("adapters", "check", adapter(rank=4), "--max-rank", 4)[0] == 0


def test_unknown_things_are_named_with_what_there_is(
    onebase: Onebase, adapter: Adapter, tmp_path: Path
) -> None:
    onebase("adapters", "publish", "support", adapter())
    code, _, err = onebase("adapters", "show", "suport")
    assert code == Exit.NOT_FOUND
    assert "Did you mean `support`" in err
    assert onebase("adapters", "show", "support@7")[0] == Exit.NOT_FOUND
    assert onebase("adapters", "history", "support")[0] == Exit.NOT_FOUND
    assert onebase("adapters", "show", "not a name")[0] == Exit.USAGE
    assert onebase("adapters", "publish", "x", tmp_path / "nowhere")[0] == Exit.NOT_FOUND
    assert onebase("adapters", "publish", "x", "s3://bucket/key")[0] == Exit.USAGE
    assert onebase("adapters", "rollback", "support")[0] == Exit.NOT_FOUND


def test_the_bases_own_name_is_reserved(onebase: Onebase, adapter: Adapter) -> None:
    code, _, err = onebase("adapters", "publish", "tiny-llama", adapter())
    assert code == Exit.CONFLICT
    assert "base model" in err


def test_a_further_name_of_the_base_proves_an_adapter_by_its_hint(
    onebase: Onebase, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adapter()
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = "org/other-name"
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert read(onebase, "adapters", "check", folder)["base"] == "unverified"
    monkeypatch.setenv("ONEBASE_BASE_ALIASES", "org/other-name")
    assert read(onebase, "adapters", "check", folder)["base"] == "verified"


def test_home_and_store_choose_the_registry(onebase: Onebase, adapter: Adapter, tmp_path: Path) -> None:
    onebase("adapters", "publish", "support", adapter(), "--home", tmp_path / "other")
    assert onebase("adapters", "list")[2].startswith("the registry is empty")
    assert "support" in onebase("adapters", "list", "--home", tmp_path / "other")[1]
    assert "support" in onebase("adapters", "list", "--store", tmp_path / "other" / "registry")[1]


def test_base_prints_its_fingerprint(onebase: Onebase, tiny_base: Path) -> None:
    found = read(onebase, "base", tiny_base)
    assert found["name"] == "tiny-llama"
    assert found["digest"].startswith("sha256:")
    assert set(found["fingerprint"]) == {"architecture", "shapes", "tokenizer", "chat_template", "weights"}
    code, out, _ = onebase("base")
    assert code == 0
    assert f"digest         {found['digest']}" in out.splitlines()
    assert onebase("base", tiny_base / "nowhere")[0] == Exit.BASE
