"""What is posted to each target, how it is signed, and what the answers mean."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from qmt_bridge.alerts.notice import Notice
from qmt_bridge.alerts.targets.target import (
    MOST_TEXT,
    Kind,
    Target,
    check_url,
    cut,
    outcome_of,
    request_of,
    sign_dingtalk,
    sign_feishu,
)
from qmt_bridge.errors import ConfigError

NOW = 1795904066.368
SECRET = "SECtest0123456789"


def notice(title: str = "【QMT Bridge 告警】行情中断", **more: Any) -> Notice:
    plain = {"event": "alert", "id": "1", "title": title, "text": f"{title}\n状态", "name": "a", "time": 1}
    return Notice(**{**plain, **more})


# Made by openssl: printf '%s\n%s' TIMESTAMP SECRET | openssl dgst -sha256 -hmac SECRET -binary | base64, and for Feishu
# printf '' | openssl dgst -sha256 -mac HMAC -macopt hexkey:... -binary | base64.


def test_dingtalk_signs_the_time_and_the_secret() -> None:
    assert sign_dingtalk("1795904066368", SECRET) == "pYjN4M7j4RqSlJUlwFK2LrRJF8FOeScCJ73neX5tU2E="


def test_feishu_signs_nothing_with_time_and_secret() -> None:
    assert sign_feishu("1795904066", SECRET) == "Sj06NujOKU6ca981Oix047gLb7Vi+rk+C321EnDRDY4="


def test_dingtalk_has_its_signature_in_the_url() -> None:
    url = "https://oapi.dingtalk.com/robot/send?access_token=abc"
    request = request_of(Target("dingtalk", url, SECRET), [notice()], NOW)
    parts = urlsplit(request.url)
    # Base64 has characters that mean something else in a URL.
    assert "sign=pYjN4M7j4RqSlJUlwFK2LrRJF8FOeScCJ73neX5tU2E%3D" in parts.query
    assert parse_qs(parts.query)["timestamp"] == ["1795904066368"]
    assert parse_qs(parts.query)["access_token"] == ["abc"]
    assert json.loads(request.body) == {"msgtype": "text", "text": {"content": notice().text}}
    assert request_of(Target("dingtalk", url), [notice()], NOW).url == url


def test_feishu_has_its_signature_in_the_body() -> None:
    url = "https://open.feishu.cn/open-apis/bot/v2/hook/abc"
    request = request_of(Target("feishu", url, SECRET), [notice()], NOW)
    assert request.url == url
    assert json.loads(request.body) == {
        "timestamp": "1795904066",
        "sign": "Sj06NujOKU6ca981Oix047gLb7Vi+rk+C321EnDRDY4=",
        "msg_type": "text",
        "content": {"text": notice().text},
    }
    assert set(json.loads(request_of(Target("feishu", url), [notice()], NOW).body)) == {"msg_type", "content"}


def test_wecom_gets_the_messages_that_wait_as_one_text() -> None:
    url = "https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=abc"
    request = request_of(Target("wecom", url), [notice("a"), notice("b")], NOW)
    assert request.url == url
    assert json.loads(request.body) == {"msgtype": "text", "text": {"content": "a\n状态\n\nb\n状态"}}


def test_a_webhook_gets_the_fields_of_one_message() -> None:
    request = request_of(Target("webhook", "http://10.0.0.9/hook"), [notice(rule="feed", since=5)], NOW)
    assert json.loads(request.body) == {
        "event": "alert",
        "id": "1",
        "rule": "feed",
        "subject": "",
        "title": notice().title,
        "text": notice().text,
        "name": "a",
        "simulated": False,
        "since": 5,
        "time": 1,
    }


@pytest.mark.parametrize("kind", ["wecom", "dingtalk", "feishu"])
def test_a_text_that_is_too_long_for_a_robot_is_cut(kind: Kind) -> None:
    request = request_of(Target(kind, "https://a"), [notice("行情" * 9000)], NOW)
    body = json.loads(request.body)
    text = body["content"]["text"] if kind == "feishu" else body["text"]["content"]
    assert len(text.encode()) <= MOST_TEXT[kind]
    assert text.endswith(("情…", "行…"))


def test_a_text_is_cut_between_characters() -> None:
    assert cut("行情中断", 12) == "行情中断"
    assert cut("行情中断", 11) == "行情…"
    assert cut("行情中断", 9) == "行情…"


OK = b'{"errcode":0,"errmsg":"ok"}'


@pytest.mark.parametrize(
    ("kind", "status", "answer", "outcome"),
    [
        ("wecom", 200, OK, "sent"),
        ("wecom", 200, b'{"errcode":45009,"errmsg":"freq out of limit"}', "again"),
        ("wecom", 200, b'{"errcode":93000,"errmsg":"invalid webhook url"}', "refused"),
        ("dingtalk", 200, b'{"errcode":310000,"errmsg":"sign not match"}', "refused"),
        ("dingtalk", 200, b'{"errcode":130101,"errmsg":"send too fast"}', "again"),
        ("feishu", 200, b'{"code":0,"msg":"success","data":{}}', "sent"),
        ("feishu", 200, b'{"StatusCode":0,"StatusMessage":"success"}', "sent"),
        ("feishu", 200, b'{"code":19021,"msg":"sign match fail"}', "refused"),
        ("feishu", 200, b'{"code":11232,"msg":"frequency limited"}', "again"),
        # A proxy answers for a robot that it does not reach.
        ("wecom", 200, b"<html>", "again"),
        ("wecom", 200, b"[]", "again"),
        ("wecom", 200, b'{"errcode":true}', "again"),
        ("webhook", 200, b"", "sent"),
        ("webhook", 204, b"", "sent"),
        ("webhook", 302, b"", "refused"),
        ("webhook", 404, b"", "refused"),
        ("webhook", 429, b"", "again"),
        ("webhook", 503, b"", "again"),
    ],
)
def test_answers_say_whether_a_message_is_sent_again(kind: Kind, status: int, answer: bytes, outcome: str) -> None:
    assert outcome_of(Target(kind, "https://a"), status, answer)[0] == outcome


def test_neither_url_nor_secret_is_shown() -> None:
    target = Target("dingtalk", "https://oapi.dingtalk.com/robot/send?access_token=t0ken", SECRET)
    _, said = outcome_of(target, 200, json.dumps({"errcode": 1, "errmsg": f"bad {SECRET}"}).encode())
    for shown in (repr(target), f"{target}", said):
        assert "t0ken" not in shown
        assert SECRET not in shown


@pytest.mark.parametrize(
    "url",
    [
        "qyapi.weixin.qq.com/send?key=t0ken",
        "ftp://a/t0ken",
        "https://",
        "https://a:b/t0ken",
        "https://a b/t0ken",
        "https://me:pass@a/t0ken",
        "http://10.0.0.5/t0ken",
        "https://机器人/t0ken",
    ],
)
def test_what_is_no_url_of_a_robot_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match=r"\[alerts\] wecom: ") as caught:
        check_url("[alerts] wecom", url, plain=False)
    assert "t0ken" not in str(caught.value)


def test_http_is_for_this_machine_and_for_own_programs() -> None:
    check_url("a", "http://127.0.0.1:8080/hook", plain=False)
    check_url("a", "http://10.0.0.5/hook", plain=True)
