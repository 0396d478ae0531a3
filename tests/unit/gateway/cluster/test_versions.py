"""Rolling out by version, without Ray: what is kept, who is refused, and what cannot be gone back to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pysqlite3.dbapi2 as sqlite3
import pytest
from click.testing import CliRunner

from backends.errors import NotFound
from gateway.cli import main
from gateway.cluster import versions
from gateway.cluster.rollout import ClusterFailed
from gateway.cluster.versions import author, draft_of, follow, rolling_out, settings_of
from gateway.settings import Settings, SettingsError, load_settings
from gateway.store import CannotOpenStore, Postgres, StoreOptions, list_configurations, open_store
from gateway.store.contract import Configuration, ConfigurationState, RolloutUnderWay
from gateway.telemetry import Telemetry
from tests.integration.process import wait_for

CONFIG = """
models:
  words: {backend: echo, expose: true, labels_file: labels.txt}
store: {path: store.db}
"""
MORE = CONFIG + "# and a remark\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "labels.txt").write_text("no\nyes\n")
    path = tmp_path / "my.yaml"
    path.write_text(CONFIG)
    return path


def load(config: Path, text: str) -> Settings:
    config.write_text(text)
    return load_settings(config)


def roll_out(settings: Settings, version: int | None = None, fails: str = "") -> int:
    with rolling_out(settings, version) as rollout:
        if fails:
            raise ClusterFailed(fails)
    return rollout.version


def listed(settings: Settings) -> list[Configuration]:
    return list(asyncio.run(list_configurations(settings.store)))


def test_what_is_served_is_kept_with_its_text_its_files_and_its_author(config: Path) -> None:
    settings = load(config, CONFIG)

    assert roll_out(settings) == 1

    (kept,) = listed(settings)
    draft = draft_of(settings)
    assert (kept.files, kept.author, kept.state) == (draft.files, author(), ConfigurationState.SERVING)
    assert list(kept.files) == ["labels.txt"]
    assert (draft.document, settings_of(config, 1).text) == (CONFIG, CONFIG)


def test_replicas_of_a_rollout_are_told_its_version_and_are_like_none_of_another(config: Path) -> None:
    settings = load(config, CONFIG)
    told = []
    for _ in range(2):
        with rolling_out(settings) as rollout:
            told.append(rollout.applied(settings).cluster)

    assert [one.version for one in told] == [1, 1]
    assert told[0].rollout != told[1].rollout


def test_one_that_fails_is_called_off_with_its_reason(config: Path) -> None:
    roll_out(load(config, CONFIG))
    settings = load(config, MORE)

    with pytest.raises(ClusterFailed, match="it could not start"):
        roll_out(settings, fails="it could not start")
    with pytest.raises(KeyboardInterrupt), rolling_out(settings):
        raise KeyboardInterrupt

    assert [(one.version, one.state, one.called_off) for one in listed(settings)] == [
        (3, ConfigurationState.CALLED_OFF, "KeyboardInterrupt()"),
        (2, ConfigurationState.CALLED_OFF, "it could not start"),
        (1, ConfigurationState.SERVING, None),
    ]


def test_a_second_rollout_meanwhile_is_refused_however_long_the_first_one_takes(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load(config, CONFIG)
    monkeypatch.setattr(versions, "LEASE_S", 1.0)
    with rolling_out(settings) as rollout:
        until_s = lease_until_s(settings)
        wait_for(lambda: lease_until_s(settings) >= until_s + 1.0)  # or somebody else could have it by now
        with pytest.raises(RolloutUnderWay, match=rf"{author()} is rolling out version 1 since 20\S+Z; wait"):
            roll_out(load(config, MORE))
        rollout.served()
        assert roll_out(load(config, MORE)) == 2, "it is over as soon as all serve, whatever is done then"


def lease_until_s(settings: Settings) -> float:
    connection = sqlite3.connect(str(settings.store.path))
    try:
        found: float = connection.execute("SELECT until_s FROM leases WHERE name = 'rollout'").fetchone()[0]
        return found
    finally:
        connection.close()


def test_nothing_is_rolled_out_where_it_cannot_be_kept(tmp_path: Path, config: Path) -> None:
    (tmp_path / "store.db").mkdir()

    with pytest.raises(CannotOpenStore, match=r"is no file|Is a directory"), rolling_out(load(config, CONFIG)):
        pytest.fail("nothing may be deployed")


def test_nothing_is_rolled_out_without_a_server(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_URL", "postgresql://127.0.0.1:9/none")
    place = StoreOptions(Postgres(url_env="STORE_URL"), key_env="STORE_KEY")
    settings = replace(load(config, CONFIG), store=place)

    with pytest.raises(CannotOpenStore, match="check that it runs, its address"), rolling_out(settings):
        pytest.fail("nothing may be deployed")


def test_a_version_is_served_again_as_it_was_whatever_the_file_says_now(config: Path) -> None:
    roll_out(load(config, CONFIG))
    roll_out(load(config, MORE))
    config.write_text("models: {}\nroutes: {nonsense: 1}\nstore: {path: store.db}\n")

    settings = settings_of(config, 1)

    assert (settings.text, settings.file, settings.models["words"].labels) == (CONFIG, config, ("no", "yes"))
    assert roll_out(settings, 1) == 1
    assert [one.state for one in listed(settings)] == [ConfigurationState.SERVED, ConfigurationState.SERVING]


def test_a_version_that_is_unknown_is_told(config: Path) -> None:
    with pytest.raises(CannotOpenStore, match=r"store\.db: No such file or directory"):
        settings_of(config, 1)
    roll_out(load(config, CONFIG))

    with pytest.raises(NotFound, match="there is no version 2 of the configuration; the newest is 1"):
        settings_of(config, 2)


def test_a_version_whose_files_have_changed_is_refused_with_each_of_them(tmp_path: Path, config: Path) -> None:
    roll_out(load(config, CONFIG))
    (tmp_path / "labels.txt").write_text("nope\nyes\n")

    with pytest.raises(ClusterFailed) as error:
        settings_of(config, 1)

    assert str(error.value).startswith(
        "files are no longer what they were in version 1: labels.txt has changed; put back what it was (SHA-256 "
    )
    assert str(error.value).endswith("What there is now can be served as a version of its own: `up` without --version")


def test_a_version_that_this_release_cannot_read_is_refused_with_its_faults(config: Path) -> None:
    settings = load(config, CONFIG)
    roll_out(settings)
    connection = sqlite3.connect(str(settings.store.path), isolation_level=None)
    connection.execute("UPDATE configurations SET document = ?", (CONFIG.replace("expose", "exposed"),))
    connection.close()

    with pytest.raises(SettingsError) as error:
        settings_of(config, 1)

    (fault,) = error.value.faults
    assert str(fault).startswith(f"{config} (version 1):3:")
    assert "unknown key" in str(fault)


def test_a_version_that_has_its_store_elsewhere_is_refused(config: Path) -> None:
    settings = load(config, CONFIG)
    roll_out(settings)
    connection = sqlite3.connect(str(settings.store.path), isolation_level=None)
    connection.execute("UPDATE configurations SET document = ?", (CONFIG.replace("store.db", "other.db"),))
    connection.close()

    with pytest.raises(ClusterFailed, match=r"version 1 has its store file \S+/other.db, and .* \S+/store.db; write"):
        settings_of(config, 1)


def follower(config: Path, text: str) -> tuple[Settings, Callable[[Any], Any]]:
    settings = load(config, text)
    return settings, lambda store: SimpleNamespace(store=store, telemetry=Telemetry())


async def test_a_replica_that_nobody_gave_a_version_finds_it_out_and_tells_when_all_serve_it(config: Path) -> None:
    settings, gateway_on = follower(config, CONFIG)
    looks = iter([False, True])

    async def is_whole() -> bool:
        return next(looks)

    async with aclosing(await open_store(settings.store)) as store:
        gateways = [gateway_on(store) for _ in range(2)]
        versions_before = [gateway.telemetry.configuration for gateway in gateways]
        await follow(settings, gateways[0], is_whole)
        await follow(settings, gateways[1], always)
        (kept,) = await store.configurations()

    assert versions_before == [None, None]
    assert [gateway.telemetry.configuration for gateway in gateways] == [1, 1]
    assert (kept.version, kept.state) == (1, ConfigurationState.SERVING)
    assert "pointsman_configuration_version 1.0" in gateways[0].telemetry.exposition("")[0].decode()


async def always() -> bool:
    return True


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_LOOK_AGAIN_S", 0.01)


def test_versions_are_listed_in_columns_and_as_json(config: Path) -> None:
    run = CliRunner().invoke
    roll_out(load(config, CONFIG))
    with pytest.raises(ClusterFailed):
        roll_out(load(config, MORE), fails="no room:\n  for a replica")

    told = run(main, ["cluster", "versions", str(config)])
    lines = told.output.splitlines()
    rows = [json.loads(line) for line in run(main, ["cluster", "versions", str(config), "--json"]).output.splitlines()]

    assert told.exit_code == 0, told.output
    assert [line.split()[0] for line in lines] == ["VERSION", "2", "1"]
    assert [line[lines[0].index("STATE") :] for line in lines[1:]] == ["called off: no room: for a replica", "serving"]
    assert all(line[lines[0].index("BY") :].startswith(author()) for line in lines[1:])
    assert [(row["version"], row["state"], row["rolled_out_by"]) for row in rows] == [
        (2, "called off", author()),
        (1, "serving", author()),
    ]
    assert rows[1]["served_at"].endswith("Z")
    assert rows[0]["files"] == rows[1]["files"] != {}


def test_a_store_that_keeps_none_yet_is_told(config: Path) -> None:
    run = CliRunner().invoke
    missing = run(main, ["cluster", "versions", str(config)])
    asyncio.run(opened_once(load_settings(config).store))
    none = run(main, ["cluster", "versions", str(config)])
    config.write_text("store: {path: 7}\n")
    faulty = run(main, ["cluster", "versions", str(config)])

    assert (missing.exit_code, none.exit_code, faulty.exit_code) == (1, 0, 1)
    assert "No such file or directory" in missing.output
    assert none.output == "none was kept yet; `pointsman cluster up` keeps what it serves\n"
    assert "store.path" in faulty.output


async def opened_once(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)):
        pass
