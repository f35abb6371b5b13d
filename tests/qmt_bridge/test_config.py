"""Settings: what beats what, what is refused and how it is named, and that the key shows nowhere."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from qmt_bridge.config import (
    CREDENTIALS,
    NAMES,
    Config,
    default,
    description,
    env_name,
    export_env,
    foreign_variables,
    given_settings,
    hidden,
    load_config,
)
from qmt_bridge.errors import ConfigError

SECRET = 's3cret-k€y, with=odd "characters"\nand lines'

ONE_OF = "expected one of auto, xtquant, sim, replay, push, xtquant+push, sim+push"

# A value other than the default for every setting, chosen to be hard to carry in an environment variable.
CHANGED = {
    "host": "::1",
    "port": 0,
    "workers": 3,
    "api_key": SECRET,
    "require_key": True,
    "open_market_data": True,
    "tls_cert": "/etc/tls/fullchain.pem",
    "tls_key": "/etc/tls/privkey.pem",
    "jwt_jwks": "https://login.example/keys",
    "jwt_issuer": "https://login.example/",
    "jwt_audience": "qmt-bridge",
    "jwt_scope_claim": "permissions",
    "jwt_accounts_claim": "https://desk.example/accounts",
    "behind_proxy": ("127.0.0.1", "10.0.0.0/24", "2001:db8::/64"),
    "proxy_header": "forwarded",
    "hosts": ("quotes.example", "gateway"),
    "origins": ("https://a.example", "https://b.example:8443"),
    "max_connections": 1,
    "max_connections_per_address": 2,
    "max_topics": 7,
    "max_rate": 8,
    "max_code_rate": 9,
    "max_views": 10,
    "outbox_bytes": 2**40,
    "outbox_total_bytes": 2**41,
    "lag_target": 2.5,
    "slow_timeout": 0.1,
    "freeze_timeout": 2.5,
    "deflate": True,
    "source": "replay",
    "file": "C:\\data\\行情 2023=1.csv.gz",
    "speed": 1e-07,
    "delay": 0.0,
    "loop": True,
    "sim_seed": 0,
    "sim_interval": 0.01,
    "sim_l2_rate": 1000.0,
    "sim_order_interval": 1e3,
    "sim_hours": "exchange",
    "push_addr": "tcp://127.0.0.1:6560",
    "push_key": "a-key-of-pushers",
    "pushers": ("ctp:quote+whole:SF+DF",),
    "xt_addr": "192.168.1.2:58611",
    "xt_token": SECRET,
    "xt_home": "D:\\行情 data",
    "xt_servers": ("10.0.0.1:55310", "10.0.0.2:55310"),
    "xt_userdata": "D:\\国金QMT交易端\\userdata_mini",
    "xt_accounts": ("1000000365:STOCK", "2000000001:CREDIT"),
    "xt_reconcile": 7.5,
    "xt_single_limit": 2,
    "xt_silence": 12.5,
    "xt_hang": 5.0,
    "xt_download_timeout": 0.5,
    "xt_download_queue": 3,
    "max_depths": 3,
    "max_formulas": 4,
    "grace": 0.0,
    "journal_days": 365,
    "journal_max_mb": 0,
    "metrics_addr": "127.0.0.1:9001",
    "data_dir": " folder with spaces ",
    "store": ("whole/SH/", "codes.txt"),
    "backfill": False,
    "store_days": 3,
    "store_max_mb": 100,
    "forward_market_addr": "tcp://0.0.0.0:7565",
    "forward_trade_addr": "",
    "forward_ask_addr": "tcp://10.0.0.2:7567",
    "forward_store_addr": "tcp://[::1]:7569",
    "forward_health_addr": "0.0.0.0:9002",
    "market_addr": "ipc:///run/market",
    "ask_addr": "ipc:///run/ask",
    "trade_addr": "ipc:///run/trade",
    "trade_ask_addr": "ipc:///run/trade-ask",
    "store_addr": "tcp://127.0.0.1:7559",
    "open_trade_addr": True,
    "curve_dir": "/etc/keys",
    "log_level": "debug",
    "log_format": "json",
    "alerts_wecom": f"https://wecom.example/?key={SECRET}",
    "alerts_dingtalk": f"https://dingtalk.example/?access_token={SECRET}",
    "alerts_dingtalk_secret": SECRET,
    "alerts_feishu": f"https://feishu.example/{SECRET}",
    "alerts_feishu_secret": SECRET,
    "alerts_webhook": f"http://10.0.0.9/{SECRET}",
    "alerts_mail_to": ("a@b.example", "c@d.example"),
    "alerts_mail_from": "行情 <a@b.example>",
    "alerts_mail_server": "smtp.example:587",
    "alerts_mail_tls": "starttls",
    "alerts_mail_user": "a@b.example",
    "alerts_mail_password": SECRET,
    "alerts_language": "en",
    "alerts_name": "上海 1 号",
    "alerts_after": 5.0,
    "alerts_settle": 0.0,
    "alerts_repeat": 60.5,
    "alerts_quiet": "22:00-07:00",
    "alerts_morning": "",
    "alerts_holidays": ("20261001", "20261002"),
    "alerts_lost": 0,
    "alerts_cut": 1,
    "alerts_disk_mb": 0,
    "alerts_ignore": ("disk", "store"),
}


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_anything_every_setting_has_its_default():
    assert load_config(env={}) == Config()
    assert [default(name) for name in NAMES] == [getattr(Config(), name) for name in NAMES]


def test_every_setting_explains_itself_in_one_sentence():
    for name in NAMES:
        assert description(name).endswith("."), name
        assert "\n" not in description(name), name


def test_a_flag_beats_the_environment_which_beats_the_file(tmp_path):
    file = write(tmp_path, 'port = 1\nworkers = 2\nhost = "file"\nlog_level = "debug"\n')
    env = {"QMT_BRIDGE_PORT": "3", "QMT_BRIDGE_WORKERS": "4", "HOME": "/root"}

    config = load_config(file, env, {"port": 5, "log_format": None})

    assert (config.port, config.workers, config.host, config.log_level) == (5, 4, "file", "debug")
    # An option that was not given is None and changes nothing.
    assert config.log_format == default("log_format")


def test_the_default_given_as_a_flag_beats_the_file(tmp_path):
    file = write(tmp_path, "port = 1\nrequire_key = true\norigins = ['*']\n")

    config = load_config(file, {}, {"port": default("port"), "require_key": False, "origins": []})

    assert config == Config()


def test_the_environment_may_name_the_file_and_a_given_file_beats_it(tmp_path):
    named = write(tmp_path, "port = 1\n")
    given = tmp_path / "given.toml"
    given.write_text("port = 2\n", encoding="utf-8")
    env = {"QMT_BRIDGE_CONFIG": str(named)}

    assert load_config(None, env).port == 1
    assert load_config(given, env).port == 2


def test_the_process_environment_is_read_when_none_is_given(monkeypatch):
    monkeypatch.setenv("QMT_BRIDGE_PORT", "4711")
    assert load_config().port == 4711


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        pytest.param("port = 9000", "port", 9000, id="integer"),
        pytest.param("slow_timeout = 30", "slow_timeout", 30.0, id="integer-as-float"),
        pytest.param("slow_timeout = 0.5", "slow_timeout", 0.5, id="float"),
        pytest.param("require_key = true", "require_key", True, id="boolean"),
        pytest.param('origins = ["https://a"]', "origins", ("https://a",), id="list"),
        pytest.param("origins = []", "origins", (), id="empty-list"),
        pytest.param("file = 'C:\\data\\a.csv'", "file", "C:\\data\\a.csv", id="literal-string"),
        pytest.param('data_dir = "行情"', "data_dir", "行情", id="utf-8"),
        pytest.param('source = "sim"', "source", "sim", id="choice"),
    ],
)
def test_a_file_has_toml_types(tmp_path, text, name, value):
    read = getattr(load_config(write(tmp_path, text), {}), name)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param('port = "8000"', "port in {file}: expected `int`, got `str`, got '8000'", id="string-for-integer"),
        pytest.param('port = "8000"', "; write it without quotes", id="quotes-around-integer"),
        pytest.param('grace = "1.5"', "; write it without quotes", id="quotes-around-float"),
        pytest.param('deflate = "True"', "; write it without quotes", id="quotes-around-boolean"),
        pytest.param('port = "x"', "got `str`, got 'x'", id="word-for-integer"),
        pytest.param("port = 80.5", "port in {file}: expected `int`", id="float-for-integer"),
        pytest.param("port = true", "port in {file}: expected `int`", id="boolean-for-integer"),
        pytest.param("port = 65536", "got 65536", id="out-of-range"),
        pytest.param("speed = -1", "speed in {file}", id="negative"),
        pytest.param("require_key = 1", "require_key in {file}: expected `bool`", id="integer-for-boolean"),
        pytest.param('origins = "*"', "origins in {file}: expected `array`", id="string-for-list"),
        pytest.param("origins = [1]", "origins in {file}", id="wrong-item"),
        pytest.param(
            'source = "xtdata"',
            f"source in {{file}}: {ONE_OF}, got 'xtdata'",
            id="unknown-choice",
        ),
        pytest.param("prot = 8000", "prot in {file}: unknown setting", id="misspelt"),
        pytest.param("[gateway]\nport = 1", "gateway in {file}: unknown setting", id="table"),
        pytest.param("port = ", "{file}: not valid TOML", id="not-toml"),
        pytest.param("port = 1\nport = 2", "{file}: not valid TOML", id="twice"),
    ],
)
def test_a_wrong_line_of_the_file_is_named(tmp_path, text, said):
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(file, {})
    assert said.format(file=file) in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.toml: cannot read the settings: No such file"):
        load_config(tmp_path / "gone.toml", {})
    with pytest.raises(ConfigError, match="cannot read the settings"):
        load_config(tmp_path, {})
    latin = tmp_path / "latin.toml"
    latin.write_bytes('data_dir = "é"'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.toml: not valid TOML"):
        load_config(latin, {})


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        pytest.param("QMT_BRIDGE_PORT", "9000", "port", 9000, id="integer"),
        pytest.param("QMT_BRIDGE_PORT", "9000 ", "port", 9000, id="space-of-cmd"),
        pytest.param("QMT_BRIDGE_SOURCE", "sim ", "source", "sim", id="space-behind-a-choice"),
        pytest.param("QMT_BRIDGE_SPEED", "2.5", "speed", 2.5, id="float"),
        pytest.param("QMT_BRIDGE_SPEED", "2", "speed", 2.0, id="integer-as-float"),
        pytest.param("QMT_BRIDGE_REQUIRE_KEY", "true", "require_key", True, id="true"),
        pytest.param("QMT_BRIDGE_REQUIRE_KEY", "1", "require_key", True, id="one"),
        pytest.param("QMT_BRIDGE_REQUIRE_KEY", "False", "require_key", False, id="false"),
        pytest.param("QMT_BRIDGE_ORIGINS", "https://a, https://b,", "origins", ("https://a", "https://b"), id="list"),
        pytest.param("QMT_BRIDGE_ORIGINS", "", "origins", (), id="empty-list"),
        pytest.param("QMT_BRIDGE_API_KEY", "12345", "api_key", "12345", id="digits-stay-text"),
        pytest.param("QMT_BRIDGE_API_KEY", "null", "api_key", "null", id="null-stays-text"),
        pytest.param("QMT_BRIDGE_API_KEY", "a,b", "api_key", "a,b", id="comma-stays-text"),
    ],
)
def test_the_environment_is_text_for_every_type(variable, text, name, value):
    read = getattr(load_config(None, {variable: text}), name)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        pytest.param("QMT_BRIDGE_PORT", "http", "QMT_BRIDGE_PORT: expected `int`, got `str`, got 'http'", id="text"),
        pytest.param("QMT_BRIDGE_PORT", "", "QMT_BRIDGE_PORT: expected `int`, got `str`, got ''", id="empty"),
        pytest.param("QMT_BRIDGE_PORT", "-1", "QMT_BRIDGE_PORT: expected `int` >= 0, got '-1'", id="out-of-range"),
        pytest.param("QMT_BRIDGE_REQUIRE_KEY", "ja", "QMT_BRIDGE_REQUIRE_KEY", id="not-a-boolean"),
        pytest.param(
            "QMT_BRIDGE_SOURCE",
            "SIM",
            f"QMT_BRIDGE_SOURCE: {ONE_OF}, got 'SIM'",
            id="unknown-choice",
        ),
    ],
)
def test_a_wrong_variable_is_named(variable, text, said):
    with pytest.raises(ConfigError) as caught:
        load_config(None, {variable: text})
    assert said in str(caught.value)
    assert caught.value.setting == variable


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        pytest.param("port", 70000, "--port: expected `int` <= 65535, got 70000", id="out-of-range"),
        pytest.param("sim_interval", 0.0, "--sim-interval: expected `float` >= 0.01, got 0.0", id="too-small"),
        pytest.param("source", "tdx", f"--source: {ONE_OF}, got 'tdx'", id="unknown-choice"),
        pytest.param("color", "red", "--color: unknown setting", id="unknown"),
    ],
)
def test_a_wrong_flag_is_named_as_it_is_written(name, value, said):
    with pytest.raises(ConfigError) as caught:
        load_config(None, {}, {name: value})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        pytest.param("QMT_BRIDGE_PROT", "the nearest setting is port (QMT_BRIDGE_PORT)", id="misspelt"),
        pytest.param("QMT_BRIDGE_MINI_QMT_PATH", "xt_userdata (QMT_BRIDGE_XT_USERDATA)", id="public-folder"),
        pytest.param("QMT_BRIDGE_REQUIRE_AUTH_FOR_DATA", "require_key (QMT_BRIDGE_REQUIRE_KEY)", id="public-key"),
        pytest.param("QMT_BRIDGE_TRADING_ACCOUNT_ID", "xt_accounts", id="public-account"),
        pytest.param("QMT_BRIDGE_FEISHU_WEBHOOK_URL", "is not used", id="public-without-a-like"),
    ],
)
def test_a_variable_that_is_no_setting_is_a_hint(variable, hint):
    env = {variable: SECRET, "QMT_BRIDGE_PORT": "9000", "QMT_BRIDGE_CONFIG": "", "OTHER": "x"}
    assert load_config(None, env) == Config(port=9000)
    [said] = foreign_variables(env)
    assert said.startswith(f"{variable} is no setting")
    assert hint in said
    assert "s3cret" not in said


def test_the_documented_environment_of_the_public_bridge_is_read():
    env = {"HOST": "0.0.0.0", "PORT": "8000", "LOG_LEVEL": "critical", "WORKERS": "1", "API_KEY": ""}
    env |= {"REQUIRE_AUTH_FOR_DATA": "false", "TRADING_ENABLED": "true", "NOTIFY_ENABLED": ""}
    config = load_config(None, {f"QMT_BRIDGE_{name}": value for name, value in env.items()})
    assert (config.host, config.log_level) == ("0.0.0.0", "critical")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("prot", "port"),
        ("require_keys", "require_key"),
        ("Port", "port"),
        ("PORT", "port"),
        ("QMT_BRIDGE_PORT", "port"),
    ],
)
def test_an_unknown_key_of_a_file_is_an_error_with_a_hint(tmp_path, name, nearest):
    with pytest.raises(ConfigError, match=rf"unknown setting; did you mean {nearest}\?"):
        load_config(write(tmp_path, f"{name} = 1"), {})


def test_a_section_of_a_file_is_an_error_with_a_hint(tmp_path):
    with pytest.raises(ConfigError, match=r"gateway in .*unknown setting; the settings stand in no section"):
        load_config(write(tmp_path, "[gateway]\nport = 1"), {})


def test_settings_of_alerts_stand_in_their_section(tmp_path):
    file = write(tmp_path, 'port = 1\n[alerts]\nafter = 5\nmail_to = ["a@b.c"]\n')
    assert load_config(file, {}) == Config(port=1, alerts_after=5.0, alerts_mail_to=("a@b.c",))
    assert load_config(file, {}, {}, ("alerts_after",)) == Config(alerts_after=5.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alerts_after = 5", r"alerts_after in .*: is not read here: write it as \[alerts\] after"),
        ("[alerts]\naftr = 5", r"\[alerts\] aftr in .*: unknown setting; did you mean \[alerts\] after\?"),
        ("[alerts]\nport = 5", r"\[alerts\] port in .*: unknown setting; it belongs above the line \[alerts\]"),
        ("[alerts]\nafter = '5'", r"\[alerts\] after in .*: expected `float`"),
        ("alerts = 5", r"alerts in .*: is a section: write \[alerts\] on a line of its own"),
        ("[alerts.mail]\nto = 5", r"\[alerts\] mail in .*: unknown setting"),
    ],
)
def test_a_setting_in_the_wrong_section_is_an_error_with_a_hint(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        load_config(write(tmp_path, text), {})


def test_keys_of_targets_are_in_no_repr_and_no_message(tmp_path):
    names = [name for name in CREDENTIALS if name.startswith("alerts_")]
    assert len(names) == 7
    assert "s3cret" not in repr(Config(**{name: CHANGED[name] for name in names}))
    for name in names:
        with pytest.raises(ConfigError) as caught:
            load_config(None, {}, {name: [CHANGED[name]]})
        assert "s3cret" not in str(caught.value)


def test_the_path_of_a_webhook_is_hidden_without_its_host():
    shown = hidden(Config(alerts_webhook="https://robot.example/send?key=abcdef"))
    assert {"https://robot.example/send?key=abcdef": "***", "send?key=abcdef": "***"}.items() <= shown.items()


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_file_may_begin_with_a_byte_order_mark(tmp_path, mark, ending):
    path = tmp_path / "settings.toml"
    path.write_bytes(mark + f'# 行情{ending}port = 1{ending}data_dir = "行情"{ending}'.encode())
    assert load_config(path, {}) == Config(port=1, data_dir="行情")


@pytest.mark.parametrize("path", ["C:\\国金　QMT 交易端\\userdata_mini", "D:\\", "\\\\server\\share"])
def test_a_path_in_single_quotes_is_taken_as_it_is(tmp_path, path):
    """The wide space of Chinese is no control character."""
    file = write(tmp_path, f"xt_userdata = '{path}'\n")
    assert load_config(file, {}).xt_userdata == path


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        pytest.param('port = 1\ndata_dir = "行情"'.encode("gbk"), "line 2 is not UTF-8 but perhaps GBK", id="gbk"),
        pytest.param("port = 1".encode("utf-16"), "UTF-16, as PowerShell's > writes", id="utf-16"),
        pytest.param("port = 1".encode("utf-16-be"), "UTF-16", id="utf-16-without-a-mark"),
        pytest.param(b'xt_userdata = "D:\\qmt\\userdata_mini"', "put paths in single quotes", id="escape"),
        pytest.param(b'xt_userdata = "C:\\Users\\qmt"', "put paths in single quotes", id="unicode-escape"),
        pytest.param(b'data_dir = "C:\\qmt\\"\nport = 1\n', "put paths in single quotes", id="last-backslash"),
        pytest.param(b'data_dir = "C:\\temp"', "put paths in single quotes", id="tab"),
        pytest.param(b'curve_dir = "C:\\new"', "put paths in single quotes", id="newline"),
        pytest.param(b'data_dir = "C:\\new"', "or write each backslash twice", id="backslash-twice"),
        pytest.param(b'port = 1\ndata_dir = "D:\\"', "put paths in single quotes", id="end-of-the-document"),
        pytest.param(b'data_dir = "D:\\"\n\n', "put paths in single quotes", id="before-empty-lines"),
        pytest.param("host = “0.0.0.0”".encode(), "Chinese keyboard", id="curly-quotes"),
    ],
)
def test_what_windows_does_to_a_file_is_named_with_a_hint(tmp_path, content, hint):
    path = tmp_path / "settings.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    assert hint in str(caught.value)


def test_mistakes_in_settings_that_are_not_read_do_not_matter(tmp_path, caplog):
    file = write(tmp_path, 'port = "x"\ncolour = 1\nmarket_addr = "tcp://127.0.0.1:9"\n')
    env = {"QMT_BRIDGE_SIM_SEED": "x", "QMT_BRIDGE_API_KEY": "k"}
    config = load_config(file, env, {}, ("market_addr", "api_key"))
    assert (config.market_addr, config.api_key, config.port) == ("tcp://127.0.0.1:9", "k", 8000)
    # A file that only the environment names may be for other commands; one given as an option is for this one.
    assert load_config(None, {"QMT_BRIDGE_CONFIG": str(tmp_path / "gone.toml")}, {}, ("port",)) == Config()
    assert "gone.toml" in caplog.text
    with pytest.raises(ConfigError):
        load_config(tmp_path / "gone.toml", {}, {}, ("port",))
    with pytest.raises(ConfigError, match="market_addr"):
        load_config(write(tmp_path, "market_addr = 1"), {}, {}, ("market_addr",))


def test_the_settings_that_are_given_are_known(tmp_path):
    file = write(tmp_path, "port = 8000\n")
    env = {"QMT_BRIDGE_SOURCE": "sim", "QMT_BRIDGE_PROT": "1"}
    assert given_settings(file, env, {"grace": 1.0, "host": None}) == {"port", "source", "grace"}


def test_the_key_is_in_no_repr():
    config = Config(api_key=SECRET)
    for shown in (repr(config), str(config), f"{config}", "%r" % (config,)):  # noqa: UP031
        assert "s3cret" not in shown
        assert "api_key='***'" in shown
    # The text shows whether there is a key, and hides no other setting.
    assert "api_key=''" in repr(Config())
    assert "port=8000" in repr(Config())


def test_the_key_is_in_no_message(tmp_path):
    with pytest.raises(ConfigError) as from_file:
        load_config(write(tmp_path, "api_key = 5310037"), {})
    with pytest.raises(ConfigError) as from_flag:
        load_config(None, {}, {"api_key": [SECRET]})
    with pytest.raises(ConfigError) as from_broken_file:
        load_config(write(tmp_path, f"api_key = {SECRET}"), {})
    for caught in (from_file, from_flag, from_broken_file):
        assert "5310037" not in str(caught.value)
        assert "s3cret" not in str(caught.value)
    assert str(from_file.value).startswith("api_key in ")


def test_account_numbers_are_in_no_repr_and_no_message(tmp_path):
    assert "1000000365" not in repr(Config(xt_accounts=("1000000365:STOCK",)))
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, 'xt_accounts = "1000000365:STOCK"'), {})
    assert str(caught.value).startswith("xt_accounts in ")
    assert "1000000365" not in str(caught.value)


def test_the_changed_settings_are_all_settings():
    assert tuple(CHANGED) == NAMES
    for name, value in CHANGED.items():
        assert value != default(name), name


@pytest.mark.parametrize("name", NAMES)
def test_a_child_reads_each_setting_from_its_environment(name):
    config = Config(**{name: CHANGED[name]})
    assert load_config(None, export_env(config)) == config


def test_a_child_reads_all_settings_from_its_environment():
    config = Config(**CHANGED)
    exported = export_env(config)
    assert load_config(None, exported) == config
    assert set(exported) == {env_name(name) for name in NAMES}
    assert all(isinstance(text, str) and "\0" not in text for text in exported.values())


def test_the_exported_environment_replaces_the_parents(tmp_path):
    # `qmt-bridge gateway --port 8000` under QMT_BRIDGE_PORT=9000: its workers inherit both.
    inherited = {**export_env(Config(**CHANGED)), "QMT_BRIDGE_CONFIG": str(write(tmp_path, "max_topics = 1\n"))}
    config = Config(port=1234)
    assert load_config(None, {**inherited, **export_env(config)}) == config


def test_settings_cannot_be_changed_after_they_were_read():
    with pytest.raises(AttributeError):
        Config().port = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        msgspec.structs.replace(Config(), prot=1)


@pytest.mark.parametrize("line", ['api_key = "a\\u0000b"', 'host = "a\\u0000b"', 'origins = ["a\\u0000b"]'])
def test_a_nul_in_a_setting_is_refused(tmp_path: Path, line: str) -> None:
    """An environment variable cannot contain NUL, so a child process could not get the setting."""
    file = tmp_path / "settings.toml"
    file.write_text(line, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"holds a NUL character$"):
        load_config(file, {}, {})
