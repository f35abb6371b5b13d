# coding:gbk
# QMT Bridge：把完整版 QMT 终端（迅投 QMT 极速策略交易系统）的行情和交易回报推送给 QMT Bridge。
#
# 用法：在终端里新建一个 Python 策略，删掉模板内容，把本文件全部粘贴进去，改好下面的设置，保存；
# 然后在“策略交易”里添加这个策略，选好资金账号，以“实盘”模式运行。它只读取，从不下单。
# 详细说明见 QMT Bridge 的文档 docs/bigqmt.md。本文件只用 Python 3.6 的标准库，不需要安装任何东西。

# ---------------------------------------------------------------- 设置
HOST = "127.0.0.1"  # feeder 所在机器的 IP 地址；同一台机器就用这个
PORT = 5560  # feeder 的设置 push_addr 里的端口
NAME = "bigqmt"  # 这个终端的名字：小写字母、数字、- 和 _；两个终端要用两个名字
KEY = ""  # feeder 的设置 push_key；没有设置就留空
TLS = False  # feeder 在另一台机器上时改为 True（这时必须有 KEY）
CA = ""  # 服务器证书不是公共机构签发时：证书的 PEM 文件路径，比如 r"C:\qmt\ca.pem"
ACCOUNTS = []  # 要推送的资金账号，比如 [("1000000365", "STOCK")]；留空就用运行策略时选择的账号
KINDS = []  # 只提供其中几种时填写，比如 ["trade"]；留空就提供终端有的全部
MARKETS = []  # 只提供其中几个市场的行情时填写，比如 ["SH", "SZ"]；留空就是全部
MAX_QUOTES = 100  # 终端允许 subscribe_quote 同时订阅的数量（多数券商是 100）；超过后分笔改用全推
SECTORS = {  # 每个市场的全部代码在哪些板块里；用于全市场的第一份快照
    "SH": ["上证A股", "上证B股", "沪市指数", "沪市基金", "沪市债券", "上证转债"],
    "SZ": ["深证A股", "深证B股", "深市指数", "深市基金", "深市债券", "深证转债"],
    "BJ": ["京市A股"],
    "SF": ["上期所"],
    "DF": ["大商所"],
    "ZF": ["郑商所"],
    "IF": ["中金所"],
    "INE": ["能源中心"],
    "GF": ["广期所"],
    "SHO": ["上证期权"],
    "SZO": ["深证期权"],
}
# ---------------------------------------------------------------- 以下不需要修改

# Written from the documentation of the terminal, and tried with a stand-in on CPython 3.6; never on a live terminal.
# In brackets below:
# [1] https://dict.thinktrader.net/innerApi/user_attention.html: "python cannot use threads", all strategies run on one
#     thread, so nothing may block it; values that are stored in ContextInfo are rolled back at each bar.
# [2] https://dict.thinktrader.net/innerApi/system_function.html: init, handlebar, stop, run_time and its periods.
# [3] https://dict.thinktrader.net/innerApi/data_function.html: quotes, full ticks, history, formulas, downloads.
# [4] https://dict.thinktrader.net/innerApi/callback_function.html: callbacks of an account, which need set_account and
#     the mode of real trading; [5] .../innerApi/data_structure.html: the fields of their objects.
# [6] https://invest.wtsolutions.cn/posts/qmt-server-connection: after its own reconnection a broker calls back all of
#     the day again.
# So there is no thread here: a timer of the terminal reads the socket and calls ContextInfo, callbacks of data write to
# the socket, and the socket never blocks. Other projects have found that a thread of one's own gets little time there,
# and that get_trade_detail_data returns nothing on it.

import calendar
import hashlib
import json
import math
import re
import select
import socket
import sys
import threading
import time
import zlib
from collections import OrderedDict, deque

PROTOCOL = 1
PUMP_MS = 100  # The period of the timer.
WORK_SECONDS = 0.05  # Of one turn of the timer, for calls into the terminal; other strategies wait meanwhile.
LIST_SECONDS = 10.0  # The account is read so often even without a callback: in the editor there are none [4].
DIRTY_SECONDS = 0.5  # Positions and assets are read so long after a callback, when all of its parts are there.
CHUNK = 65536  # Bytes that are encoded ahead of the socket.
MAX_LINE = 4 * 1024 * 1024
MAX_HELD = 64 * 1024 * 1024  # Bytes of lines that may not be left out; beyond it the connection is made anew.
MAX_RECENT = 5000  # Trade events that are sent again on each connection.
PIECE = 300  # Codes of one get_full_tick, ticks of one line.
DEAF_SECONDS = 30.0  # The feeder sends a line every 5 s.
CONNECT_SECONDS = 10.0
SHANGHAI = 8 * 3600
# Seconds without any tick of a whole market, in its continuous trading, until it is told as silent.
SILENCE_SECONDS = 30
SESSIONS = ((9 * 3600 + 1800, 11 * 3600 + 1800), (13 * 3600, 14 * 3600 + 57 * 60))

# The terminal's name of each period of ours [3]. Level 2 needs an entitlement.
PERIODS = {p: p for p in ("tick", "1m", "5m", "15m", "30m", "1h", "1d", "1w", "1mon", "1q", "1hy", "1y")}
PERIODS.update({p: p for p in ("l2quote", "l2quoteaux", "l2order", "l2transaction", "l2orderqueue")})
PERIODS.update({"60m": "1h", "l2transactioncount": "l2transactioncount"})
# Of these each record counts, so that none may be left out; of the others the newest one.
EVERY = ("l2order", "l2transaction")
# The period that has to be downloaded for another one [3].
BASES = {"15m": "5m", "30m": "5m", "1h": "5m", "1w": "1d", "1mon": "1d", "1q": "1d", "1hy": "1d", "1y": "1d"}

ACCOUNT_TYPES = {
    "FUTURE": 1,
    "STOCK": 2,
    "CREDIT": 3,
    "FUTURE_OPTION": 5,
    "STOCK_OPTION": 6,
    "HUGANGTONG": 7,
    "SHENGANGTONG": 11,
}
# Exchanges by the name that objects of an account may show, and by that in codes.
EXCHANGES = {"SHFE": "SF", "DCE": "DF", "CZCE": "ZF", "CFFEX": "IF", "GFEX": "GF"}

ADVICE = {
    "refused_connection": "连不上 feeder（%s:%s）：请启动 qmt-bridge（--source push），核对 HOST 和 PORT。%s",
    "lost": "与 feeder 的连接断开了，会自动重连：%s",
    "replaced": "另一个同名（NAME=%s）的终端或策略接替了本策略，本策略停止推送。",
    "taken": "feeder 拒绝：别的推送程序已经提供了同样的数据。请改 KINDS 或 MARKETS，或停掉另一个。%s",
    "forbidden": "feeder 拒绝：KEY 不对，或者设置 pushers 不允许这个 NAME，或者 feeder 由另一个用户运行、"
    "终端以管理员身份运行（这时请给 feeder 设置 push_key，并填写 KEY）。%s",
    "unsupported": "feeder 拒绝：协议版本不同，请使用与 qmt-bridge 同一版本的本文件。%s",
    "bad_request": "feeder 拒绝了本策略的请求，请把这一行报告给 QMT Bridge：%s",
    "tls": "feeder 在另一台机器上（HOST=%s）或者 TLS 为 True 时，必须同时设置 TLS = True 和 KEY。改好后重新运行。",
    "unknown_host": "HOST=%s 解析不了（%s）。请填写 IP 地址，或者在系统的 hosts 文件里加上这个主机名，然后重新运行。",
    "no_account": "没有资金账号：请在“策略交易”里选择账号后运行，或者填写 ACCOUNTS。现在只推送行情。",
    "backtest": "本策略不能回测：请在“策略交易”里以实盘模式运行。",
    "failed": "调用终端的 %s 出错：%s",
    "unread": "读不出终端对象的字段 %s（%s），该字段留空。",
    "call": "程序出错，请报告给 QMT Bridge：%s: %s",
    "line": "feeder 拒绝了一行数据（%s）：%s",
    "full": "feeder 太慢，积压超过 64 MB，重新连接。",
}

BRIDGE = None
# The process keeps the running bridge here, because each run of a strategy may get globals of its own.
PLACE = "_qmt_bridge_push_" + NAME


# ---------------------------------------------------------------- Values


def text_of(value):
    """Return a text of the terminal as str; bytes are UTF-8 or GBK."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("gbk", "replace")
    return "" if value is None else str(value)


def plain(value):
    """Return a value of the terminal as JSON has it: numpy's numbers become numbers, NaN becomes None."""
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {text_of(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, bytes):
        return text_of(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return int(value) if isinstance(value, int) else text_of(value)


def encode(line):
    """Return a line of the protocol; ASCII, so that no encoding of the terminal matters."""
    try:
        # The usual case needs no copy: NaN raises ValueError, and what is no type of Python TypeError.
        return json.dumps(line, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"
    except (TypeError, ValueError):
        return json.dumps(plain(line), allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def moment(text):
    """Return a time of Shanghai such as 20240222091259.500 or "20240222 09:12:59" as ms since 1970, or None."""
    digits = re.sub("[^0-9]", "", text_of(text))
    if len(digits) not in (8, 14, 17):
        return None
    try:
        parts = time.strptime(digits[:14].ljust(14, "0"), "%Y%m%d%H%M%S")
    except ValueError:
        return None
    return (calendar.timegm(parts) - SHANGHAI) * 1000 + int(digits[14:] or 0)


def stamp(ms):
    """Return ms since 1970 as YYYYMMDDhhmmss of Shanghai."""
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(ms // 1000 + SHANGHAI))


def timed(record, label=None):
    """Give a record of quotes its `time` in ms, if the terminal gave another form of it [5]."""
    value = record.get("time")
    if type(value) is int and value > 10000000000:
        return record
    value = plain(value)
    if isinstance(value, (int, float)) and value > 10000000000:
        record["time"] = int(value)
        return record
    for each in (record.get("stime"), record.get("timetag"), value, label):
        found = None if each is None else moment(each)
        if found is not None:
            record["time"] = found
            break
    return record


def records_of(value):
    """Return what the terminal gives for one code as records, oldest first.

    It is one record ('dict'), a list for each field ('list'), a list of records, or a pandas.DataFrame whose index is
    the time [3].
    """
    if isinstance(value, dict):
        marks = next((value[name] for name in ("time", "stime", "timetag") if name in value), None)
        if isinstance(marks, (list, tuple)) or (hasattr(marks, "__len__") and hasattr(marks, "tolist")):
            rows = zip(*(plain(column) for column in value.values()))
            return [timed(dict(zip(value, row))) for row in rows]
        # A copy: the terminal may use its own again. `encode` makes its values plain, if that is needed.
        return [timed(dict(value))] if value else []
    if hasattr(value, "columns") and hasattr(value, "to_dict"):
        return [timed(row, label) for row, label in zip(value.to_dict("records"), list(value.index))]
    if isinstance(value, (list, tuple)):
        return [timed(dict(each)) for each in value if isinstance(each, dict)]
    return []


def read(item, *names):
    """Return the first of these fields of an object of the terminal that it has, as plain value, or None."""
    for name in names:
        try:
            value = getattr(item, name, None)
        except UnicodeDecodeError as exc:
            # A native object decodes its text when it is read; brokers write GBK.
            value = exc.object
        except Exception as exc:
            # A native object raises for a field that it cannot give to Python; the others are of use without it.
            value = None
            if BRIDGE is not None:
                BRIDGE.say("unread", name, exc)
        if value is not None:
            return plain(value)
    return None


def number(item, *names):
    value = read(item, *names)
    return value if isinstance(value, (int, float)) else 0


def words(item, *names):
    return text_of(read(item, *names))


def code_of(item):
    code, exchange = words(item, "m_strInstrumentID"), words(item, "m_strExchangeID")
    return code if "." in code or not exchange else code + "." + EXCHANGES.get(exchange, exchange)


def seconds_of(date, clock):
    """Return a date and a time of day as seconds since 1970, as xttrader has them; 0 if there is none."""
    clock = re.sub("[^0-9]", "", text_of(clock))
    found = moment(text_of(date) + (clock[:6].rjust(6, "0") if clock else ""))
    return found // 1000 if found else 0


def is_silent(now, last):
    """Return whether a market that had ticks in this session has none any more; times in seconds since 1970.

    The terminal does not say that it has lost its quote server. A day without any tick may be a holiday.
    """
    clock = (now + SHANGHAI) % 86400
    for begin, end in SESSIONS:
        if begin <= clock < end:
            return last >= now - (clock - begin) and now - last > SILENCE_SECONDS
    return False


def digest(*values):
    return hashlib.sha1(json.dumps(values).encode("ascii")).hexdigest()[:16]


# ---------------------------------------------------------------- Objects of an account, with the names of xttrader


def order_id_of(item):
    """Return a number that an order and its fills have in common.

    It comes from the number of the counter, which stays the same; the terminal's own m_nRef was seen to differ between
    a callback and a query.
    """
    number_of_counter = words(item, "m_strOrderSysID")
    if not number_of_counter:
        reference = words(item, "m_nRef", "m_strOrderRef")
        return int(reference) if reference.isdecimal() and len(reference) < 16 else 0
    if number_of_counter.isdecimal() and len(number_of_counter) < 16:
        return int(number_of_counter)
    return zlib.crc32(number_of_counter.encode("utf-8")) & 0x7FFFFFFF


def side_of(item):
    """Return 23 for a purchase and 24 for a sale of stocks, by the flag that tells them apart [5]; else the flag."""
    flag = read(item, "m_nOffsetFlag")
    return {48: 23, 49: 24}.get(flag, flag)


def today():
    return stamp(int(time.time() * 1000))[:8]


def order_event(item, account, kind):
    """Return identity and data of an order as it is now.

    The identity has only what a callback and a list give alike, as far as it is known: a number of the counter belongs
    to a day and, of futures, to an exchange.
    """
    date = words(item, "m_strInsertDate") or today()
    data = {
        "account_type": ACCOUNT_TYPES.get(kind, 0),
        "account_id": account,
        "stock_code": code_of(item),
        "order_id": order_id_of(item),
        "order_sysid": words(item, "m_strOrderSysID"),
        "order_time": seconds_of(date, words(item, "m_strInsertTime")),
        "order_type": side_of(item),
        "order_volume": number(item, "m_nVolumeTotalOriginal"),
        "price_type": read(item, "m_nOrderPriceType"),
        "price": number(item, "m_dLimitPrice"),
        "traded_volume": number(item, "m_nVolumeTraded"),
        "traded_price": number(item, "m_dTradedPrice"),
        "order_status": read(item, "m_nOrderStatus"),
        "status_msg": words(item, "m_strCancelInfo") or words(item, "m_strErrorMsg"),
        "strategy_name": words(item, "m_strStrategyName", "m_strSource"),
        "order_remark": words(item, "m_strRemark"),
        "direction": read(item, "m_nDirection"),
        "offset_flag": read(item, "m_nOffsetFlag"),
        "instrument_name": words(item, "m_strInstrumentName"),
    }
    name = data["order_sysid"] or "ref:" + words(item, "m_strOrderRef", "m_nRef")
    state = "{}/{}".format(data["order_status"], data["traded_volume"])
    return bounded("order/{}/{}/{}/{}".format(date, data["stock_code"], name, state)), data


def trade_event(item, account, kind):
    """Return identity and data of a fill."""
    date = words(item, "m_strTradeDate") or today()
    data = {
        "account_type": ACCOUNT_TYPES.get(kind, 0),
        "account_id": account,
        "stock_code": code_of(item),
        "order_type": side_of(item),
        "traded_id": words(item, "m_strTradeID"),
        "traded_time": seconds_of(date, words(item, "m_strTradeTime")),
        "traded_price": number(item, "m_dPrice"),
        "traded_volume": number(item, "m_nVolume"),
        "traded_amount": number(item, "m_dTradeAmount"),
        "order_id": order_id_of(item),
        "order_sysid": words(item, "m_strOrderSysID"),
        "strategy_name": words(item, "m_strStrategyName", "m_strSource"),
        "order_remark": words(item, "m_strRemark"),
        "direction": read(item, "m_nDirection"),
        "offset_flag": read(item, "m_nOffsetFlag"),
        "commission": number(item, "m_dCommission", "m_dComssion", "m_dComission"),
        "instrument_name": words(item, "m_strInstrumentName"),
    }
    # The number of a fill is one of its exchange; without it the values are all there is.
    name = data["traded_id"] or digest(
        data["traded_time"], data["traded_price"], data["traded_volume"], data["traded_amount"]
    )
    return bounded("trade/{}/{}/{}/{}".format(date, data["stock_code"], data["order_sysid"], name)), data


def position_event(item, account, kind, day, fills):
    """Return identity and data of a position; `fills` of its code today tell apart equal positions of one day.

    A price that moves makes no new event: only what is held, and its cost, are in the identity.
    """
    data = {
        "account_type": ACCOUNT_TYPES.get(kind, 0),
        "account_id": account,
        "stock_code": code_of(item),
        "volume": number(item, "m_nVolume"),
        "can_use_volume": number(item, "m_nCanUseVolume"),
        "open_price": number(item, "m_dOpenPrice"),
        "market_value": number(item, "m_dMarketValue", "m_dInstrumentValue"),
        "frozen_volume": number(item, "m_nFrozenVolume"),
        "on_road_volume": number(item, "m_nOnRoadVolume"),
        "yesterday_volume": number(item, "m_nYesterdayVolume"),
        "avg_price": number(item, "m_dOpenPrice"),
        "direction": read(item, "m_nDirection"),
        "last_price": number(item, "m_dLastPrice", "m_dSettlementPrice"),
        "profit_rate": number(item, "m_dProfitRate"),
        "secu_account": words(item, "m_strStockHolder"),
        "instrument_name": words(item, "m_strInstrumentName"),
        "float_profit": number(item, "m_dFloatProfit"),
        "position_profit": number(item, "m_dPositionProfit"),
        "open_date": words(item, "m_strOpenDate"),
    }
    held = [data[name] for name in ("volume", "can_use_volume", "frozen_volume", "on_road_volume", "yesterday_volume")]
    # Positions of futures are one for each direction and day of opening.
    held += [round(data["open_price"], 4), data["direction"], words(item, "m_strTradeID"), read(item, "m_bIsToday")]
    return bounded("position/{}/{}/{}/{}".format(day, data["stock_code"], fills, digest(*held))), data


def asset_event(item, account, kind, day, changes):
    """Return identity and data of an account's assets; `changes` are the numbers of its orders and fills today."""
    data = {
        "account_type": ACCOUNT_TYPES.get(kind, 0),
        "account_id": account,
        "cash": number(item, "m_dAvailable"),
        "frozen_cash": number(item, "m_dFrozenCash"),
        "market_value": number(item, "m_dInstrumentValue", "m_dStockValue"),
        "total_asset": number(item, "m_dBalance", "m_dAssetBalance"),
        "fetch_balance": number(item, "m_dFetchBalance"),
    }
    held = [round(data[name], 2) for name in ("cash", "frozen_cash", "fetch_balance")]
    held += [number(item, "m_dDeposit"), number(item, "m_dWithdraw")]
    return bounded(f"asset/{day}/{changes}/{digest(*held)}"), data


def bounded(identity):
    """Return an identity of at most 128 characters."""
    return identity if len(identity) <= 128 else identity[:100] + "/" + digest(identity)


# ---------------------------------------------------------------- What the terminal calls


def init(ContextInfo):
    global BRIDGE
    if getattr(ContextInfo, "do_back_test", False):
        print("[QMT Bridge] " + ADVICE["backtest"])
        return
    old = getattr(sys, PLACE, None)
    if old is not None:
        # "Run" was pressed again; only the newest run pushes.
        old.end(ContextInfo)
    accounts = [(text_of(each[0]), text_of(each[1]).upper()) for each in ACCOUNTS]
    chosen = named("account")
    if not accounts and chosen:
        accounts = [(text_of(chosen), text_of(named("accountType") or "STOCK").upper())]
    for account_id, _ in accounts:
        ContextInfo.set_account(account_id)
    BRIDGE = Bridge(ContextInfo, accounts)
    setattr(sys, PLACE, BRIDGE)
    if not accounts:
        BRIDGE.say("no_account")
    # A time in the past starts it at once [2].
    ContextInfo.run_time("qmt_bridge_pump", f"{PUMP_MS}nMilliSecond", "2020-01-01 00:00:00")


def qmt_bridge_pump(ContextInfo):
    if BRIDGE is not None:
        BRIDGE.pump(ContextInfo)


def handlebar(ContextInfo):
    # Once for each tick of the main chart; at the start once for each bar of the past, which is nothing to us.
    if BRIDGE is not None and ContextInfo.is_last_bar():
        BRIDGE.pump(ContextInfo)


def stop(ContextInfo):
    if BRIDGE is not None:
        BRIDGE.end(ContextInfo)


def order_callback(ContextInfo, orderInfo):
    if BRIDGE is not None:
        BRIDGE.noted(BRIDGE.note_order, orderInfo)


def deal_callback(ContextInfo, dealInfo):
    if BRIDGE is not None:
        BRIDGE.noted(BRIDGE.note_fill, dealInfo)


def position_callback(ContextInfo, positionInfo):
    if BRIDGE is not None:
        BRIDGE.note_change()


def account_callback(ContextInfo, accountInfo):
    if BRIDGE is not None:
        BRIDGE.note_change()


def orderError_callback(ContextInfo, orderArgs, errMsg):
    if BRIDGE is not None:
        BRIDGE.noted(BRIDGE.note_error, orderArgs, errMsg)


def named(name):
    """Return a function or value that the terminal puts beside the strategy, or None if this terminal has it not."""
    found = globals().get(name)
    if found is None:
        builtin = globals().get("__builtins__", {})
        found = builtin.get(name) if isinstance(builtin, dict) else getattr(builtin, name, None)
    return found


# ---------------------------------------------------------------- The pusher


class Refusal(Exception):
    """What is wanted cannot be served: a code of the protocol, and a sentence."""

    def __init__(self, code, sentence):
        Exception.__init__(self, sentence)
        self.code = code


class Wanted:
    """A topic that the feeder wants: its subscription at the terminal."""

    def __init__(self, key, topic):
        self.key = key
        self.topic = topic
        self.number = None  # Of the subscription, for unsubscribe.
        self.formula = False
        self.counted = False  # Against MAX_QUOTES.
        self.alive = True
        self.held = None  # Changes of a market that arrive before its first snapshot is complete.


class Bridge:
    """One connection to the feeder, made again whenever it ends. All methods return at once.

    `pump` alone calls the terminal. The other methods are called by the terminal, perhaps from within a call of `pump`,
    and only queue and send.
    """

    def __init__(self, context, accounts):
        self.accounts = accounts
        # Also what this terminal may not have: it is refused with the reason.
        self.kinds = ["quote", "whole", "l2", "formula", "download"]
        if accounts:
            self.kinds.append("trade")
        if KINDS:
            self.kinds = [kind for kind in self.kinds if kind in KINDS]
        self.history = hasattr(context, "get_market_data_ex")
        self.ended = False
        self.lock = threading.Lock()
        self.said = set()
        # A name is resolved here only: that may take seconds, and all strategies wait meanwhile.
        self.place = self.resolve()
        self.sock = None
        self.phase = "closed"  # connecting, handshake, hello (sent), up
        self.broken = None  # Why the connection has to be made anew.
        self.since = 0.0  # Of the phase.
        self.retry_at = 0.0
        self.pause = 1.0
        self.silence = 15.0
        self.heard = 0.0
        self.spoke = 0.0
        self.input = bytearray()
        self.output = bytearray()
        self.waiting = OrderedDict()  # What is to be sent, by what a newer one replaces.
        self.held_bytes = 0
        self.count = 0
        self.wanted = {}
        self.jobs = deque()  # Generators that call the terminal, a piece at a time.
        self.context = context
        # Trade events by account and identity: the newest, which each connection gets again.
        self.recent = OrderedDict()
        # Identities that this connection has got, by account: since its newest list, and from the list before to that
        # one. What the terminal lists no more, such as the positions of earlier fills, is forgotten.
        self.told = {}
        self.listing = False
        self.errors = 0
        self.born = int(time.time() * 1000)
        self.list_at = 0.0
        self.states = None
        self.ticked = 0.0  # When a market was called back, in seconds since 1970.
        self.silent = False

    # Of the terminal's thread.

    def resolve(self):
        """Return what a socket to HOST needs, or None; the settings do not change while the strategy runs."""
        if (TLS and not KEY) or (not TLS and HOST not in ("127.0.0.1", "localhost", "::1")):
            # Without TLS the key could be read on the way.
            self.say("tls", HOST)
            return None
        try:
            return socket.getaddrinfo(HOST, PORT, 0, socket.SOCK_STREAM)[0]
        except (OSError, UnicodeError) as exc:
            self.say("unknown_host", HOST, exc)
            return None

    def pump(self, context):
        """Do what is due: connect, read, call the terminal for what is wanted, and send."""
        if self.ended or not self.lock.acquire(False):
            return
        try:
            self.turn(context, time.monotonic())
        except Exception as exc:
            self.say("call", type(exc).__name__, exc)
            self.broken = self.broken or "error"
        finally:
            self.lock.release()

    def turn(self, context, now):
        if self.broken:
            self.close(context, now)
        if self.phase == "closed":
            if now >= self.retry_at:
                self.open(now)
        elif self.phase == "connecting":
            self.connect(now)
        elif self.phase == "handshake":
            self.shake(now)
        else:
            self.receive(now)
        if self.phase == "up":
            self.work(context, now)
            self.watch(time.time())
            if not self.output and not self.waiting and now - self.spoke > self.silence / 3:
                self.put(("heartbeat",), {"type": "heartbeat"})
        self.send(time.monotonic())

    def open(self, now):
        if self.place is None:
            # It was told at the start.
            return
        family, kind, protocol, _, address = self.place
        try:
            self.sock = socket.socket(family, kind, protocol)
            self.sock.setblocking(False)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # What waits in the system grows old, and what waits here is replaced by what is newer.
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * CHUNK)
            self.sock.connect_ex(address)
        except OSError as exc:
            self.fail(now, exc)
            return
        self.phase, self.since = "connecting", now

    def connect(self, now):
        # On Windows a refused connection is in the third list.
        _, writable, failed = select.select([], [self.sock], [self.sock], 0)
        error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error or failed or now - self.since > CONNECT_SECONDS:
            self.fail(now, OSError(error, "no connection"))
        elif writable:
            if TLS:
                # Only here: some brokers allow few modules.
                import ssl

                context = ssl.create_default_context(cafile=CA or None)
                self.sock = context.wrap_socket(self.sock, server_hostname=HOST, do_handshake_on_connect=False)
                self.phase, self.since = "handshake", now
                self.shake(now)
            else:
                self.greet(now)

    def shake(self, now):
        import ssl

        try:
            self.sock.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if now - self.since > CONNECT_SECONDS:
                self.fail(now, OSError(0, "no TLS"))
        except OSError as exc:
            self.fail(now, exc)
        else:
            self.greet(now)

    def fail(self, now, exc):
        self.say("refused_connection", HOST, PORT, exc)
        self.broken = "connect"

    def greet(self, now):
        hello = {
            "type": "hello",
            "protocol": PROTOCOL,
            "name": NAME,
            "kinds": self.kinds,
            "simulated": False,
            "history": self.history,
        }
        if MARKETS:
            hello["markets"] = MARKETS
        if "trade" in self.kinds:
            hello["accounts"] = [account for account, _ in self.accounts]
        if KEY:
            hello["key"] = KEY
        self.output += encode(hello)
        self.phase, self.since, self.heard, self.spoke = "hello", now, now, now

    def close(self, context, now):
        """End the connection; the demand of the next one comes with its welcome."""
        if self.phase in ("hello", "up"):
            self.say("lost", self.broken)
        if self.sock is not None:
            self.sock.close()
        self.sock = None
        self.phase = "closed"
        self.broken = None
        self.retry_at = now + self.pause
        self.pause = min(self.pause * 2, 30.0)
        self.input.clear()
        self.output.clear()
        self.waiting.clear()
        self.held_bytes = 0
        self.jobs.clear()
        self.listing = False
        self.silent = False
        self.states = None
        for each in list(self.wanted.values()):
            self.forget(context, each)

    def end(self, context):
        """End for good: `stop`, a newer run, or a newer pusher of this name."""
        self.ended = True
        if self.sock is not None:
            self.sock.close()
        self.sock = None
        for each in list(self.wanted.values()):
            self.forget(context, each)

    def receive(self, now):
        """Read what the feeder has sent."""
        try:
            while True:
                piece = self.sock.recv(CHUNK)
                if not piece:
                    self.broken = self.broken or "feeder"
                    break
                self.heard = now
                self.input += piece
                if len(self.input) > MAX_LINE:
                    self.broken = "too long"
                    return
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as exc:
            # SSLWantReadError too: nothing is there. It is no module of ours without TLS.
            if type(exc).__name__ not in ("SSLWantReadError", "SSLWantWriteError"):
                self.broken = str(exc)
        if now - self.heard > DEAF_SECONDS:
            self.broken = "timeout"
        *lines, rest = bytes(self.input).split(b"\n")
        self.input = bytearray(rest)
        for line in lines:
            if line.strip() and not self.ended:
                try:
                    self.understand(json.loads(line.decode("utf-8")), now)
                except (KeyError, TypeError, ValueError, AttributeError) as exc:
                    self.say("call", type(exc).__name__, exc)
                    if self.phase == "hello":
                        # No feeder listens there.
                        self.broken = "no welcome"

    def understand(self, message, now):
        kind = message.get("type")
        if kind == "welcome":
            self.phase = "up"
            self.pause = 1.0
            self.silence = float(message.get("silence", 15))
            self.said.clear()
            print(f"[QMT Bridge] 已连接 {HOST}:{PORT}，名字 {NAME}，资金账号 {len(self.accounts)} 个")
            # What is older than two days the feeder might have forgotten, and would refuse.
            oldest = int(time.time() * 1000) - 2 * 24 * 3600 * 1000
            self.told = {}
            for account, identity in self.recent:
                self.told.setdefault(account, (set(), set()))[0].add(identity)
            for key, line in self.recent.items():
                if line["time"] > oldest:
                    self.put(("trade", key), line)
            self.list_at = now
        elif kind == "refused":
            code = message.get("code")
            if code == "replaced":
                self.say("replaced", NAME)
                self.ended = True
                self.sock.close()
                self.sock = None
                return
            self.say(code if code in ADVICE else "bad_request", message.get("error"))
            self.phase = "refused"
            self.pause = 30.0
            self.broken = "refused"
        elif kind == "error":
            self.say("line", message.get("code"), message.get("error"))
        elif kind == "subscribe":
            self.jobs.append(self.begin(message["topic"]))
        elif kind == "unsubscribe":
            self.jobs.append(self.leave(message["topic"]))
        elif kind == "download":
            self.jobs.append(self.download(message))
        elif kind == "history":
            self.jobs.append(self.tell_history(message))

    def work(self, context, now):
        """Call the terminal for a part of what is to be done, while the feeder takes what it gives."""
        self.context = context
        if "trade" in self.kinds and now >= self.list_at and not self.listing:
            self.list_at = now + LIST_SECONDS
            self.listing = True
            self.jobs.append(self.list_accounts())
        until = now + WORK_SECONDS
        while self.jobs and not self.broken and len(self.output) < CHUNK and time.monotonic() < until:
            job = self.jobs.popleft()
            try:
                next(job)
            except StopIteration:
                continue
            except Exception as exc:
                # It costs this job only.
                self.say("call", type(exc).__name__, exc)
                self.listing = False
                continue
            # Several jobs take turns, so that a whole market does not delay a tick.
            self.jobs.append(job)
            self.send(time.monotonic())

    def watch(self, now):
        """Tell when a whole market of stocks becomes silent, and when it is not any more."""
        markets = [each for each in self.wanted.values() if each.topic.get("code") in ("SH", "SZ")]
        silent = bool(markets) and is_silent(now, self.ticked)
        if silent != self.silent:
            self.silent = silent
            reason = "market_silent" if silent else None
            state = {"type": "state", "state": "stale" if silent else "up", "reason": reason, "data_lost": not silent}
            self.answer(state)

    def has(self, name):
        return hasattr(self.context, name) or named(name) is not None

    def call(self, name, *arguments, **by_name):
        """Call a method of ContextInfo, or a function that the terminal puts beside the strategy.

        What this terminal has not, and what it raises, becomes a refusal.
        """
        if not self.has(name):
            raise Refusal("unsupported_sdk", f"this terminal has no {name}")
        function = getattr(self.context, name, None) or named(name)
        try:
            return function(*arguments, **by_name)
        except Exception as exc:
            self.say("failed", name, f"{type(exc).__name__}: {exc}")
            raise Refusal("upstream_refused", f"the terminal's {name} failed: {text_of(exc)[:200]}") from exc

    # Subscriptions.

    def begin(self, topic):
        key = json.dumps(topic, sort_keys=True)
        if key in self.wanted:
            return
        wanted = self.wanted[key] = Wanted(key, topic)
        try:
            kind = topic.get("kind")
            serve = {"quote": self.begin_quote, "whole": self.begin_whole, "formula": self.begin_formula}.get(kind)
            if serve is None:
                raise Refusal("unsupported_sdk", "the full terminal has no depth beyond that of its ticks")
            for _ in serve(wanted):
                yield
        except Exception as exc:
            if not isinstance(exc, Refusal):
                self.say("call", type(exc).__name__, exc)
            self.forget(self.context, wanted)
            code = getattr(exc, "code", "upstream_refused")
            self.answer({"type": "refuse", "topic": topic, "code": code, "error": str(exc)})

    def leave(self, topic):
        wanted = self.wanted.get(json.dumps(topic, sort_keys=True))
        if wanted is not None:
            self.forget(self.context, wanted)
        return
        yield

    def forget(self, context, wanted):
        if self.wanted.get(wanted.key) is wanted:
            del self.wanted[wanted.key]
        wanted.alive = False
        if wanted.number is None:
            return
        try:
            if wanted.formula:
                named("unsubscribe_formula")(wanted.number)
            else:
                context.unsubscribe_quote(wanted.number)
        except Exception as exc:
            self.say("failed", "unsubscribe_quote", f"{type(exc).__name__}: {exc}")
        wanted.number = None

    def check(self, number):
        """Refuse what the terminal did not subscribe: it returns -1, or nothing that is a number."""
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise Refusal("upstream_refused", f"the terminal returned {number!r} for the subscription")
        return number

    def begin_quote(self, wanted):
        code, period = wanted.topic["code"], wanted.topic.get("period", "tick")
        theirs = PERIODS.get(period)
        if theirs is None:
            raise Refusal("unsupported_period", f"the full terminal has no period {period}")
        ticks = self.call("get_full_tick", [code]) or {}
        if not ticks.get(code) and not self.is_listed(code):
            raise Refusal("unknown_symbol", f"the terminal does not know {code}")

        def on_data(data):
            self.noted(self.note_quote, wanted, data)

        if sum(each.counted for each in self.wanted.values()) < MAX_QUOTES:
            wanted.counted = True
            # 'list' has each record that came since the last call; 'dict' has one.
            options = {"period": theirs, "dividend_type": "none", "result_type": "list" if period in EVERY else "dict"}
            try:
                number = self.call("subscribe_quote", code, callback=on_data, **options)
            except Refusal as exc:
                if not isinstance(exc.__cause__, TypeError):
                    raise
                # An older terminal has no result_type; it gives a pandas.DataFrame.
                del options["result_type"]
                number = self.call("subscribe_quote", code, callback=on_data, **options)
        elif period == "tick":
            # Ticks of the whole-market feed do not count against the limit of subscriptions [3].
            number = self.call("subscribe_whole_quote", [code], callback=on_data)
        else:
            raise Refusal("symbol_limit", f"MAX_QUOTES of the strategy is {MAX_QUOTES}")
        wanted.number = self.check(number)
        if period == "tick" and ticks.get(code):
            # A market that is closed calls nothing back.
            self.note_quote(wanted, {code: ticks[code]})
        else:
            self.answer({"type": "accept", "topic": wanted.topic})
        return
        yield

    def is_listed(self, code):
        for name in ("get_instrument_detail", "get_instrumentdetail"):
            if hasattr(self.context, name):
                return bool(self.call(name, code))
        return True

    def begin_whole(self, wanted):
        place = wanted.topic["code"]
        wanted.held = OrderedDict()

        def on_data(data):
            self.noted(self.note_market, wanted, data)

        codes = [place] if "." in place else self.codes_of(place)
        number = self.call("subscribe_whole_quote", [place], callback=on_data)
        wanted.number = self.check(number)
        yield
        pieces = max(1, -(-len(codes) // PIECE))
        for at in range(pieces):
            if not wanted.alive:
                return
            ticks = self.call("get_full_tick", codes[at * PIECE : (at + 1) * PIECE]) or {}
            data = {code: timed(dict(tick)) for code, tick in ticks.items() if isinstance(tick, dict) and tick}
            if pieces == 1 and not data and "." in place:
                raise Refusal("unknown_symbol", f"the terminal does not know {place}")
            self.every({"topic": wanted.topic, "time": int(time.time() * 1000), "data": data, "more": at + 1 < pieces})
            yield
        held, wanted.held = wanted.held, None
        for code, tick in held.items():
            self.put(("whole", wanted.key, code), tick)

    def codes_of(self, market):
        """Return the codes of a market: of the sectors that the settings name, else of its full ticks."""
        codes = OrderedDict()
        ending = "." + market
        for sector in SECTORS.get(market, ()):
            members = self.call("get_stock_list_in_sector", sector) or ()
            codes.update((text_of(code), None) for code in members if text_of(code).endswith(ending))
        if not codes:
            # xtquant's function of this name takes markets; of the terminal's own it is not documented.
            ticks = self.call("get_full_tick", [market]) or {}
            codes.update((code, None) for code in ticks if code.endswith(ending))
        if not codes:
            raise Refusal("upstream_refused", f"the terminal lists no codes of {market}: name its sectors in SECTORS")
        return list(codes)

    def begin_formula(self, wanted):
        topic = wanted.topic
        theirs = PERIODS.get(topic.get("period", "1d"))
        if theirs is None:
            raise Refusal("unsupported_period", "the full terminal has no such period")

        def on_data(data):
            self.noted(self.note_values, wanted, data)

        number = self.call(
            "subscribe_formula",
            topic["formula_name"],
            topic["stock_code"],
            theirs,
            "",
            "",
            topic.get("count", -1),
            topic.get("dividend_type", "none"),
            topic.get("params", {}),
            on_data,
        )
        wanted.number = self.check(number)
        wanted.formula = True
        self.answer({"type": "accept", "topic": topic})
        return
        yield

    def download(self, message):
        """Download the codes one by one: a call may take long, and other strategies wait meanwhile."""
        topic = message["topic"]
        key = json.dumps(topic, sort_keys=True)
        wanted = self.wanted[key] = Wanted(key, topic)
        stocks, period = message["stocks"], PERIODS.get(message.get("period", "1d"))
        code = "" if period else "unsupported_period"
        if not self.has("download_history_data"):
            code = "unsupported_sdk"
        if code:
            self.forget(self.context, wanted)
            error = "this terminal has no such download"
            self.answer({"type": "refuse", "topic": topic, "code": code, "error": error})
            return
        period = BASES.get(period, period)
        start, end = message.get("start_time", ""), message.get("end_time", "")
        failed = {}
        for at, stock in enumerate(stocks):
            yield
            if not wanted.alive:
                return
            reason = ""
            try:
                self.call("download_history_data", stock, period, start, end)
            except Refusal as exc:
                reason = failed[stock] = str(exc)
            done = {"finished": at + 1, "total": len(stocks), "stockcode": stock, "message": reason}
            self.every({"topic": topic, "data": done})
        result = {"status": "done"}
        if failed:
            error = f"{len(failed)} of {len(stocks)} codes failed: {next(iter(failed.values()))}"
            result = {"status": "error", "type": "error", "code": "upstream_refused", "error": error, "failed": failed}
        self.every({"topic": topic, "data": result})
        self.forget(self.context, wanted)

    def tell_history(self, message):
        topic, number = message["topic"], message["id"]
        period = PERIODS.get(topic.get("period", "tick"))
        try:
            if topic.get("kind") != "quote" or period is None:
                raise Refusal("unsupported_period", "the full terminal has no such history")
            found = self.call(
                "get_market_data_ex",
                [],
                [topic["code"]],
                period=period,
                start_time=stamp(message["from"]),
                end_time="",
                count=-1,
                dividend_type="none",
                fill_data=False,
                # Without it the ticks of today are only those that were downloaded [3].
                subscribe=True,
            )
            records = records_of((found or {}).get(topic["code"]))
            rows = [row for row in records if row.get("time", 0) >= message["from"]]
        except Exception as exc:
            if not isinstance(exc, Refusal):
                self.say("call", type(exc).__name__, exc)
            code = getattr(exc, "code", "upstream_refused")
            self.answer({"type": "refuse", "id": number, "code": code, "error": str(exc)})
            return
        for at in range(0, max(1, len(rows)), PIECE):
            more = at + PIECE < len(rows)
            self.every({"type": "history", "id": number, "data": rows[at : at + PIECE], "more": more})
            yield

    # Accounts.

    def list_accounts(self):
        """Publish what the terminal lists of each account, as far as this connection has not seen it."""
        day = today()
        states = []
        listed = []
        for account, kind in self.accounts:
            yield
            try:
                before = self.query(account, kind, "deal")
                lists = {what: self.query(account, kind, what) for what in ("account", "position", "order", "deal")}
            except Refusal as exc:
                states.append({"account": account, "type": kind, "state": "down", "reason": str(exc)})
                continue
            state = words(lists["account"][0], "m_strStatus") if lists["account"] else "not logged in"
            # "Logged in"; a terminal without this field has no row of an account that is not.
            is_up = bool(lists["account"]) and state in ("", "登录成功")
            known = {"state": "up", "reason": None} if is_up else {"state": "connecting", "reason": state}
            states.append(dict(known, account=account, type=kind))
            if len(lists["deal"]) == len(before):
                listed.append((account, kind, lists))
            else:
                # The terminal wrote a fill meanwhile; the number of fills belongs to the identity of a position.
                self.note_change()
        if states != self.states:
            self.states = states
            self.answer({"type": "accounts", "accounts": states})
        for account, kind, lists in listed:
            self.publish_lists(account, kind, lists, day)
        self.listing = False

    def publish_lists(self, account, kind, lists, day):
        orders = sorted(lists["order"], key=lambda o: (words(o, "m_strInsertDate"), words(o, "m_strInsertTime")))
        fills = sorted(lists["deal"], key=lambda o: (words(o, "m_strTradeDate"), words(o, "m_strTradeTime")))
        counts = {}
        for item in orders:
            self.publish(account, "order", order_event(item, account, kind), found=True)
        for item in fills:
            counts[code_of(item)] = counts.get(code_of(item), 0) + 1
            self.publish(account, "trade", trade_event(item, account, kind), found=True)
        for item in lists["position"]:
            count = counts.get(code_of(item), 0)
            self.publish(account, "position", position_event(item, account, kind, day, count))
        changes = f"{len(orders)}.{len(fills)}"
        for item in lists["account"][:1]:
            self.publish(account, "asset", asset_event(item, account, kind, day, changes))
        newer, _ = self.told.get(account, (set(), set()))
        self.told[account] = (set(), newer)

    def query(self, account, kind, what):
        return list(self.call("get_trade_detail_data", account, kind, what) or ())

    def publish(self, account, event, identified, found=False):
        """Queue a trade event, unless one of this identity was queued before."""
        identity, data = identified
        key = (account, identity)
        newer, older = self.told.setdefault(account, (set(), set()))
        is_told = identity in newer or identity in older
        newer.add(identity)
        if is_told:
            return
        if found:
            data["recovered"] = True
        line = {
            "topic": {"kind": "trade", "account": account},
            "id": identity,
            "event": event,
            "time": int(time.time() * 1000),
            "data": data,
        }
        self.recent[key] = line
        while len(self.recent) > MAX_RECENT:
            self.recent.popitem(last=False)
        if self.phase == "up":
            self.put(("trade", key), line)

    # Called by the terminal.

    def noted(self, note, *values):
        """Note what the terminal calls back; what cannot be read costs that call, and raises nothing there."""
        try:
            note(*values)
        except Exception as exc:
            self.say("call", type(exc).__name__, exc)

    def kind_of(self, item):
        """Return account and type of an object of the terminal, if the account is one of ours."""
        account = words(item, "m_strAccountID", "accountID")
        for each, kind in self.accounts:
            if each == account:
                return each, kind
        return None, None

    def note_order(self, item):
        account, kind = self.kind_of(item)
        if account is not None and "trade" in self.kinds:
            self.publish(account, "order", order_event(item, account, kind))
            self.note_change()
            self.flush()

    def note_fill(self, item):
        account, kind = self.kind_of(item)
        if account is not None and "trade" in self.kinds:
            self.publish(account, "trade", trade_event(item, account, kind))
            self.note_change()
            self.flush()

    def note_change(self):
        self.list_at = min(self.list_at, time.monotonic() + DIRTY_SECONDS)

    def note_error(self, item, sentence):
        """Publish an order that failed; the terminal lists it nowhere, so that its number makes its identity."""
        account, kind = self.kind_of(item)
        if account is None or "trade" not in self.kinds:
            return
        self.errors += 1
        strategy, _, remark = words(item, "strategyName").partition("_&&&_")
        data = {
            "account_type": ACCOUNT_TYPES.get(kind, 0),
            "account_id": account,
            "order_id": 0,
            "error_id": 0,
            "error_msg": text_of(sentence),
            "strategy_name": strategy,
            "order_remark": remark,
            "stock_code": words(item, "orderCode"),
        }
        self.publish(account, "order_error", (f"order_error/{self.born}/{self.errors}", data))
        self.flush()

    def note_quote(self, wanted, data):
        """Queue the records of a code; a newer record replaces one that waits."""
        code, period = wanted.topic["code"], wanted.topic.get("period", "tick")
        if not wanted.alive or not isinstance(data, dict) or code not in data:
            return
        now = int(time.time() * 1000)
        records = records_of(data[code])
        if period in EVERY:
            if records:
                self.every({"topic": wanted.topic, "time": now, "data": records})
        else:
            for record in records:
                # A bar is replaced by the newer state of the same bar only.
                at = None if period in ("tick", "l2quote", "l2quoteaux", "l2orderqueue") else record.get("time")
                self.put(("quote", wanted.key, at), {"topic": wanted.topic, "time": now, "data": record})
        self.flush()

    def note_values(self, wanted, data):
        if wanted.alive and isinstance(data, dict):
            self.put(("formula", wanted.key), {"topic": wanted.topic, "data": plain(data)})
            self.flush()

    def note_market(self, wanted, data):
        if not wanted.alive or not isinstance(data, dict):
            return
        place = wanted.topic["code"]
        if "." not in place:
            self.ticked = time.time()
            place = "." + place
        # They are read when they are sent: this may be a whole market, and the terminal's thread waits.
        for code, value in data.items():
            if not text_of(code).endswith(place):
                # The feeder would refuse the line with all that are in it.
                continue
            if wanted.held is not None:
                wanted.held[code] = value
            else:
                self.put(("whole", wanted.key, code), value)
        self.flush()

    # What is sent.

    def put(self, key, line):
        """Queue a line, in place of one that waits under the same key."""
        if self.phase == "up":
            self.waiting[key] = line

    def every(self, line):
        """Queue a line that nothing replaces. It is encoded now, so that its bytes can be counted."""
        if self.phase != "up":
            return
        self.count += 1
        encoded = encode(line)
        self.held_bytes += len(encoded)
        if self.held_bytes > MAX_HELD:
            self.say("full")
            self.broken = "full"
            return
        self.waiting[("every", self.count)] = encoded

    def answer(self, line):
        self.every(line)

    def flush(self):
        """Send what waits, unless `pump` runs and will do it."""
        if not self.ended and self.lock.acquire(False):
            try:
                self.send(time.monotonic())
            except Exception as exc:
                self.say("call", type(exc).__name__, exc)
            finally:
                self.lock.release()

    def send(self, now):
        """Send until the socket takes no more, or the other strategies have waited long enough."""
        until = now + WORK_SECONDS
        while self.phase in ("hello", "up") and not self.broken and not self.ended and time.monotonic() < until:
            if self.phase == "up":
                self.fill()
            if not self.output:
                return
            try:
                sent = self.sock.send(self.output)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                if type(exc).__name__ not in ("SSLWantReadError", "SSLWantWriteError"):
                    self.broken = str(exc)
                return
            self.spoke = now
            del self.output[:sent]

    def fill(self):
        """Encode what waits, as far as the socket may take it soon; ticks of one market share lines."""
        while self.waiting and len(self.output) < CHUNK:
            key, line = self.waiting.popitem(last=False)
            if key[0] == "every":
                self.held_bytes -= len(line)
                self.output += line
            elif key[0] == "whole":
                wanted = self.wanted.get(key[1])
                ticks = {key[2]: line}
                while self.waiting and len(ticks) < PIECE:
                    following = next(iter(self.waiting))
                    if following[:2] != key[:2]:
                        break
                    ticks[following[2]] = self.waiting.pop(following)
                newest = self.newest_of(ticks)
                if wanted is not None and newest:
                    self.output += encode({"topic": wanted.topic, "time": int(time.time() * 1000), "data": newest})
            else:
                self.output += encode(line)

    def newest_of(self, ticks):
        """Return the newest record of each code; a value that cannot be read costs its code only."""
        newest = {}
        for code, value in ticks.items():
            try:
                newest.update((code, record) for record in records_of(value)[-1:])
            except Exception as exc:
                self.say("call", type(exc).__name__, exc)
        return newest

    def say(self, key, *values):
        """Tell the user something once until the next connection, for each first value."""
        if (key, values[:1]) not in self.said:
            self.said.add((key, values[:1]))
            sentence = ADVICE[key] % values if values else ADVICE[key]
            print("[QMT Bridge] " + sentence.encode("gbk", "replace").decode("gbk"))
