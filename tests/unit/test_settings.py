"""Settings: which one counts, and how wrong ones are told."""

from pathlib import Path

import pytest

from compose.settings import Settings, load
from ranker.budgets import Budgets
from ranker.slate.rules import Cap, Rules
from schemas.errors import SettingsError
from schemas.features import REGISTRY


def settings(folder: Path, flag: str | None = None, variable: str | None = None, file: str | None = None) -> Settings:
    """Settings with topic_prefix given in some of the three places."""
    path = folder / "millstream.toml"
    path.write_text("" if file is None else f'topic_prefix = "{file}"\n')
    variables = {} if variable is None else {"MILLSTREAM_TOPIC_PREFIX": variable}
    return load({"topic_prefix": flag}, variables, path)


def refusal(folder: Path, variables: dict[str, str], toml: str = "") -> str:
    """What is said about wrong settings."""
    path = folder / "millstream.toml"
    path.write_text(toml)
    with pytest.raises(SettingsError) as caught:
        load({}, variables, path)
    return str(caught.value)


def test_a_flag_counts_before_all_else(tmp_path: Path) -> None:
    """Whoever types it means it."""
    assert settings(tmp_path, "flag-", "variable-", "file-").topic_prefix == "flag-"


def test_a_variable_counts_before_the_file(tmp_path: Path) -> None:
    """A deployment overrides what is checked in."""
    assert settings(tmp_path, None, "variable-", "file-").topic_prefix == "variable-"


def test_the_file_counts_before_the_default(tmp_path: Path) -> None:
    """That is what it is there for."""
    assert settings(tmp_path, None, None, "file-").topic_prefix == "file-"


def test_without_any_the_default_counts(tmp_path: Path) -> None:
    """No prefix, the local stack, our own registry."""
    found = load({}, {}, tmp_path / "millstream.toml")

    assert (found.topic_prefix, found.kafka_bootstrap, found.features) == ("", "localhost:9092", REGISTRY)


def test_an_empty_flag_is_a_value(tmp_path: Path) -> None:
    """--topic-prefix '' takes the prefix away again."""
    assert settings(tmp_path, "", "variable-", "file-").topic_prefix == ""


def test_a_count_that_is_none_is_told(tmp_path: Path) -> None:
    """0 switches repeats off; fewer there are not."""
    assert "MILLSTREAM_REPEAT_OFFSETS is '-1': it takes a whole number" in refusal(tmp_path, {"MILLSTREAM_REPEAT_OFFSETS": "-1"})


@pytest.mark.parametrize("count", ["0", "-1", "two", ""])
def test_fewer_processes_than_one_are_told(tmp_path: Path, count: str) -> None:
    """Nothing would run."""
    assert f"MILLSTREAM_PROCESSES is {count!r}: it takes a whole number, 1 or more" in refusal(tmp_path, {"MILLSTREAM_PROCESSES": count})


def test_the_last_process_has_a_metrics_port_too(tmp_path: Path) -> None:
    """Each has the one behind that of the process before it."""
    told = refusal(tmp_path, {"MILLSTREAM_METRICS_PORT": "65534", "MILLSTREAM_PROCESSES": "3"})

    assert "metrics_port and the 3 processes' own behind it reach 65536: ports end at 65535" in told


def test_all_wrong_settings_are_told_at_once(tmp_path: Path) -> None:
    """Each with where it stands, its value and what would be right."""
    told = refusal(
        tmp_path,
        {
            "MILLSTREAM_STORE_URL": "localhost:6379",
            "MILLSTREAM_KAFKA_BOOTSTRAP": "localhost",
            "MILLSTREAM_METRICS_PORT": "99999",
            "MILLSTREAM_TOPIC_PREFIX": "a b",
            "MILLSTREAM_FEATURES": "no.such:REGISTRY",
            "MILLSTREAM_SCHEMA_REGISTRY_URL": "registry:8081",
        },
    )

    parts = [
        "MILLSTREAM_STORE_URL is 'localhost:6379': it takes a URL like redis://localhost:6379",
        "MILLSTREAM_KAFKA_BOOTSTRAP is 'localhost': it takes a list of host:port",
        "MILLSTREAM_METRICS_PORT is '99999': it takes a port",
        "MILLSTREAM_TOPIC_PREFIX is 'a b': it takes letters",
        "MILLSTREAM_FEATURES is 'no.such:REGISTRY': it takes module:NAME",
        "MILLSTREAM_SCHEMA_REGISTRY_URL is 'registry:8081': it takes a URL like http://localhost:8081",
    ]
    assert [part for part in parts if part not in told] == []


def test_a_wrong_flag_is_named_as_it_was_typed(tmp_path: Path) -> None:
    """--kafka-bootstrap, not kafka_bootstrap."""
    with pytest.raises(SettingsError, match="--kafka-bootstrap is 'here'"):
        load({"kafka_bootstrap": "here"}, {}, tmp_path / "millstream.toml")


def test_a_wrong_value_of_the_file_names_that_file(tmp_path: Path) -> None:
    """Whichever file was asked for."""
    told = refusal(tmp_path, {}, 'store_url = "nowhere"')

    assert f"{tmp_path / 'millstream.toml'}: store_url is 'nowhere'" in told


def test_a_key_that_is_no_setting_is_told_beside_the_wrong_ones(tmp_path: Path) -> None:
    """A misspelt key would otherwise be the default, silently."""
    told = refusal(tmp_path, {"MILLSTREAM_METRICS_PORT": "x"}, 'kafka_bootstrapp = "localhost:9092"')

    assert ("'kafka_bootstrapp' is no setting" in told, "MILLSTREAM_METRICS_PORT is 'x'" in told) == (True, True)


def test_a_file_that_is_not_toml_is_told_with_its_line(tmp_path: Path) -> None:
    """And the next step."""
    assert "millstream.toml is not TOML" in refusal(tmp_path, {}, "topic_prefix = \n")


def test_numbers_of_the_file_are_taken_as_such(tmp_path: Path) -> None:
    """metrics_port = 9100 without quotes."""
    path = tmp_path / "millstream.toml"
    path.write_text("metrics_port = 9100\n")

    assert load({}, {}, path).metrics_port == 9100


def test_a_list_is_taken_where_one_is_meant(tmp_path: Path) -> None:
    """reply_topics as a TOML array and as words between commas are the same."""
    path = tmp_path / "millstream.toml"
    path.write_text('reply_topics = ["one", "two"]\n')

    assert load({}, {}, path).reply_topics == load({"reply_topics": "one,two"}, {}, tmp_path / "none").reply_topics


def test_budgets_are_a_table_of_the_file(tmp_path: Path) -> None:
    """Or words of a flag; a stage that is not named keeps its own."""
    path = tmp_path / "millstream.toml"
    path.write_text("[budgets_ms]\nstore = 20\ntotal = 100\n")
    found = load({}, {}, path).budgets_ms

    assert (found, found) == (
        Budgets(store_ms=20, total_ms=100),
        load({"budgets_ms": "store=20, total=100"}, {}, tmp_path / "none").budgets_ms,
    )


def test_wrong_budgets_are_told_at_once(tmp_path: Path) -> None:
    """Stages that are none, numbers that are none, what is not over 0, and more than there is."""
    told = refusal(tmp_path, {}, '[budgets_ms]\nstores = 1\nscore = "1.5"\nstore = 0\nbackfill = -1\nrules = 99\n')

    parts = ["'stores' is no stage", "score is '1.5', no whole number", "store is 0 ms", "backfill is -1 ms", "over the total of 80"]
    assert ([part for part in parts if part not in told], "budgets_ms is" in told) == ([], True)


def test_what_is_no_registry_is_refused(tmp_path: Path) -> None:
    """A name that means something else."""
    assert "this one is a tuple" in refusal(tmp_path, {"MILLSTREAM_FEATURES": "schemas.features:FEATURES"})


@pytest.mark.parametrize(
    "url",
    [
        "rediss://me:secret@host:6380/2",
        "redis+cluster://a:1,b:2",
        "rediss+cluster://me:secret@a",
        "redis+sentinel://a:1,b/feed/3",
        "redis://[::1]:6379",
    ],
)
def test_a_store_may_be_of_several_sorts(tmp_path: Path, url: str) -> None:
    """One server, a cluster, or behind sentinels, each with TLS and a user."""
    assert load({"store_url": url}, {}, tmp_path / "none").store_url == url


@pytest.mark.parametrize(
    "url",
    [
        "redis://a:1,b:2",
        "redis+cluster://a:1/2",
        "redis+sentinel://a:1",
        "redis://me:secret@a:b",
        "redis://a/x",
        "redis+tls://a",
        "redis://a:65536",
        "redis://",
    ],
)
def test_a_store_url_that_is_none_is_told_without_its_password(tmp_path: Path, url: str) -> None:
    """With a URL of each sort that would be right."""
    told = refusal(tmp_path, {"MILLSTREAM_STORE_URL": url})

    assert ("it takes a URL like redis://" in told, "secret" in told) == (True, False)


def test_plain_kafka_needs_no_security(tmp_path: Path) -> None:
    """A user that is set beside PLAINTEXT is not sent."""
    assert load({"kafka_sasl_username": "me", "kafka_sasl_password": "secret"}, {}, tmp_path / "none").kafka_security == {}


def test_kafka_security_goes_by_librdkafkas_names(tmp_path: Path) -> None:
    """What is not given is not sent."""
    ca = tmp_path / "ca.pem"
    ca.touch()
    words = {"security_protocol": "SASL_SSL", "sasl_username": "me", "sasl_password": "secret", "tls_ca_file": str(ca)}

    found = load({f"kafka_{name}": word for name, word in words.items()}, {}, tmp_path / "none").kafka_security

    assert found == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "me",
        "sasl.password": "secret",
        "ssl.ca.location": str(ca),
    }


def test_halves_of_security_are_told(tmp_path: Path) -> None:
    """SASL without a user, a key without its certificate, a file that is not there, a mechanism that is none."""
    key = tmp_path / "key.pem"
    key.touch()
    halves = {
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_TLS_KEY_FILE": str(key),
        "STORE_TLS_CA_FILE": "nowhere.pem",
        "KAFKA_SASL_MECHANISM": "GSSAPI",
    }
    told = refusal(tmp_path, {f"MILLSTREAM_{name}": value for name, value in halves.items()})

    parts = [
        "kafka_security_protocol is 'SASL_SSL': it takes kafka_sasl_username and kafka_sasl_password",
        "kafka_tls_key_file is given without kafka_tls_cert_file",
        "MILLSTREAM_STORE_TLS_CA_FILE is 'nowhere.pem': it takes a file that is there",
        "MILLSTREAM_KAFKA_SASL_MECHANISM is 'GSSAPI': it takes one of PLAIN",
    ]
    assert [part for part in parts if part not in told] == []


def test_rules_of_the_slate_are_a_table(tmp_path: Path) -> None:
    """As millstream.toml has tables; a variable holds the same as JSON."""
    (tmp_path / "millstream.toml").write_text(
        '[slate]\nblocked_authors = ["spam"]\n[[slate.caps]]\nof = "author"\ncount = 2\nwindow = 10\n'
    )
    expected = Rules(caps=(Cap(of="author", count=2, window=10),), blocked_authors=("spam",))
    as_json = '{"caps": [{"of": "author", "count": 2, "window": 10}], "blocked_authors": ["spam"]}'

    assert load({}, {}, tmp_path / "millstream.toml").slate == expected
    assert load({}, {"MILLSTREAM_SLATE": as_json}, tmp_path / "nothing.toml").slate == expected


def test_a_wrong_rule_is_told(tmp_path: Path) -> None:
    """With where it stands and the field at fault."""
    assert "divercity" in refusal(tmp_path, {}, "[slate.divercity]\nweight = 1\n")


def test_the_lake_is_a_folder_of_the_state_unless_it_is_named(tmp_path: Path) -> None:
    """With the options of its object store from a table of the file."""
    path = tmp_path / "millstream.toml"
    path.write_text('lake_uri = "s3://b/lake"\n[lake_storage_options]\nAWS_REGION = "eu"\nAWS_ALLOW_HTTP = true\n')

    assert load({"state_dir": str(tmp_path)}, {}, tmp_path / "none").lake == (str(tmp_path / "lake"), {})
    assert load({}, {}, path).lake == ("s3://b/lake", {"AWS_REGION": "eu", "AWS_ALLOW_HTTP": "True"})


def test_retention_is_days_by_topic(tmp_path: Path) -> None:
    """A topic that is none, or no days, are told with the topics that are."""
    assert load({"lake_retention_days": "impressions=400, clicks=30"}, {}, tmp_path / "none").lake_retention_days == {
        "impressions": 400,
        "clicks": 30,
    }
    for wrong in ("impression=400", "clicks=0", "clicks"):
        assert "topics are impressions, clicks" in refusal(tmp_path, {"MILLSTREAM_LAKE_RETENTION_DAYS": wrong})


def test_a_wrong_secret_is_not_repeated(tmp_path: Path) -> None:
    """What is said ends up in logs."""
    told = refusal(tmp_path, {"MILLSTREAM_LAKE_STORAGE_OPTIONS": '{"AWS_SECRET_ACCESS_KEY": "hidden"'})

    assert ("LAKE_STORAGE_OPTIONS is not shown: it takes" in told, "hidden" in told) == (True, False)
    assert "hidden" not in repr(load({"lake_storage_options": "AWS_SECRET_ACCESS_KEY=hidden"}, {}, tmp_path / "none"))
