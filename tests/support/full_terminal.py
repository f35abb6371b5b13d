"""A stand-in of the full QMT terminal: a program of CPython 3.6 that runs a strategy as the terminal's documents say.

    python3.6 full_terminal.py STRATEGY --account 1000000365 --broker FILE

It was written from https://dict.thinktrader.net/innerApi/ (user_attention, system_function, data_function,
callback_function, data_structure), without a terminal. What it takes from there:

- The strategy is a file in GBK, executed in a namespace that has the functions of the terminal.
- One thread calls all of the strategy. Here a function of the terminal that another thread calls fails; the documents
  say only that threads do not work.
- init once, then handlebar for each bar of the past, then timers and callbacks. ContextInfo loses what a strategy has
  stored in it.
- Callbacks of an account come after set_account only, and not in the editor (``--editor``), which has no `account`.

Each line of the standard input is a command in JSON; all lines that begin with ``# `` are answers. The file of the
broker keeps what an account has over a kill.
"""

import argparse
import datetime
import json
import os
import queue
import sys
import threading
import time
import traceback

SHANGHAI = datetime.timezone(datetime.timedelta(hours=8))
SECTORS = {
    "上证A股": ["600000.SH", "600519.SH", "601898.SH"],
    "沪市指数": ["000001.SH"],
    "深证A股": ["000001.SZ", "300750.SZ"],
}
CODES = sorted(code for codes in SECTORS.values() for code in codes)
BARS = ("1m", "5m", "15m", "30m", "1h", "1d", "1w", "1mon", "1q", "1hy", "1y")
LEVEL2 = ("l2quote", "l2quoteaux", "l2order", "l2transaction", "l2transactioncount", "l2orderqueue")


def say(name, **values):
    sys.stdout.write("# " + json.dumps(dict(values, said=name)) + "\n")
    sys.stdout.flush()


class Record:
    """An object of an account, whose fields the terminal frees after the callback."""

    def __init__(self, fields):
        self.__dict__.update(fields)

    def free(self):
        self.__dict__.clear()


class Frame:
    """What is used of a pandas.DataFrame: rows of columns, with the time as text as index."""

    def __init__(self, rows):
        self.rows = rows
        self.index = [row["stime"] for row in rows]
        self.columns = [name for name in (rows[0] if rows else ()) if name != "stime"]

    def to_dict(self, form):
        assert form == "records", form
        return [{name: row[name] for name in self.columns} for row in self.rows]


def tick(code, count):
    now = time.time()
    base = 10.0 + CODES.index(code)
    price = round(base + count % 50 / 100.0, 2)
    moment = datetime.datetime.fromtimestamp(now, SHANGHAI)
    return {
        "time": int(now * 1000),
        "stime": moment.strftime("%Y%m%d%H%M%S.") + f"{moment.microsecond // 1000:03}",
        "lastPrice": price,
        "open": base,
        "high": base + 0.5,
        "low": base,
        "lastClose": base,
        "amount": count * 1000.0,
        # Lots, and counted up: a test tells by it which ticks it has.
        "volume": count,
        "pvolume": count * 100,
        "stockStatus": 0,
        "openInt": 13,
        "transactionNum": float("nan"),
        "askPrice": [price + 0.01, price + 0.02, 0.0, 0.0, 0.0],
        "bidPrice": [price - 0.01, price - 0.02, 0.0, 0.0, 0.0],
        "askVol": [1, 2, 0, 0, 0],
        "bidVol": [3, 4, 0, 0, 0],
    }


def bar(code, count):
    now = int(time.time()) // 60 * 60 + 60
    base = 10.0 + CODES.index(code)
    values = dict.fromkeys(("open", "high", "low", "close", "preClose"), base)
    label = datetime.datetime.fromtimestamp(now, SHANGHAI).strftime("%Y%m%d%H%M%S")
    return dict(values, time=now * 1000, stime=label, volume=count, amount=count * 1000.0, suspendFlag=0)


def detail(code, count):
    return {"time": int(time.time() * 1000), "price": 10.0, "volume": 100, "tradeIndex": count, "entrustNo": count}


class ContextInfo:
    """The object that is handed to the strategy. `terminal` is not of the terminal's interface."""

    do_back_test = False

    def __init__(self, terminal):
        self._terminal = terminal

    def is_last_bar(self):
        return self._terminal.last_bar

    def set_account(self, account):
        self._terminal.mine("set_account")
        self._terminal.accounts.append(account)

    def run_time(self, name, period, start):
        self._terminal.mine("run_time")
        assert period.endswith("nMilliSecond"), period
        assert isinstance(name, str), name
        seconds = int(period[: -len("nMilliSecond")]) / 1000.0
        self._terminal.timers.append([time.monotonic() + seconds, seconds, self._terminal.space, name])

    def subscribe_quote(self, stock_code, period="follow", dividend_type="follow", result_type="", callback=None):
        self._terminal.mine("subscribe_quote")
        known = ("tick",) + BARS + (LEVEL2 if self._terminal.options.level2 else ())
        if stock_code not in CODES or period not in known:
            return -1
        return self._terminal.subscribe((stock_code,), period, result_type, callback)

    def subscribe_whole_quote(self, code_list, callback=None):
        self._terminal.mine("subscribe_whole_quote")
        codes = [code for code in CODES for name in code_list if code == name or code.endswith("." + name)]
        return self._terminal.subscribe(codes, "whole", "dict", callback)

    def unsubscribe_quote(self, subId):
        self._terminal.mine("unsubscribe_quote")
        return self._terminal.subscriptions.pop(subId, None) is not None

    def get_full_tick(self, stock_code=()):
        self._terminal.mine("get_full_tick")
        return {code: tick(code, self._terminal.count) for code in stock_code if code in CODES}

    def get_instrument_detail(self, code):
        self._terminal.mine("get_instrument_detail")
        return {"InstrumentName": code} if code in CODES else {}

    def get_stock_list_in_sector(self, sector):
        self._terminal.mine("get_stock_list_in_sector")
        return list(SECTORS.get(sector, ()))

    def get_market_data_ex(
        self,
        fields=(),
        stock_code=(),
        period="follow",
        start_time="",
        end_time="",
        count=-1,
        dividend_type="follow",
        fill_data=True,
        subscribe=True,
    ):
        self._terminal.mine("get_market_data_ex")
        assert len(start_time) in (0, 8, 14), start_time
        make = tick if period == "tick" else bar
        return {code: Frame([make(code, count) for count in range(3)]) for code in stock_code if code in CODES}


class OldContextInfo(ContextInfo):
    """That of an older terminal: a pandas.DataFrame for each callback."""

    def subscribe_quote(self, stock_code, period="follow", dividend_type="follow", callback=None):
        return ContextInfo.subscribe_quote(self, stock_code, period, dividend_type, "", callback)


class Broker:
    """The account, in a file: orders, fills, positions and assets with the terminal's names."""

    def __init__(self, path, account):
        self.path = path
        self.account = account
        self.now = {"order": [], "deal": [], "position": [], "account": []}
        if os.path.exists(path):
            with open(path) as file:
                self.now = json.load(file)
        else:
            self.assets(1000000.0, 0.0)

    def save(self):
        with open(self.path + ".new", "w") as file:
            json.dump(self.now, file)
        os.replace(self.path + ".new", self.path)

    def head(self, code="601898.SH"):
        number, _, market = code.partition(".")
        name = "中煤能源"
        return {
            "m_strAccountID": self.account,
            "m_strInstrumentID": number,
            "m_strExchangeID": market,
            "m_strInstrumentName": name,
        }

    def assets(self, cash, frozen):
        fields = {
            "m_dAvailable": cash,
            "m_dFrozenCash": frozen,
            "m_dBalance": cash + frozen,
            "m_dInstrumentValue": 0.0,
            "m_dFetchBalance": cash,
            "m_strStatus": "登录成功",
        }
        self.now["account"] = [dict(fields, m_strAccountID=self.account)]

    def order(self, number, status, traded=0):
        """Write an order of 200 shares in a state, and return it."""
        clock = datetime.datetime.now(SHANGHAI)
        old = next((each for each in self.now["order"] if each["m_strOrderSysID"] == str(number)), None)
        fields = self.head()
        fields.update(
            m_strOrderSysID=str(number),
            m_nRef=1090571185 + number,
            m_nVolumeTotalOriginal=200,
            m_dLimitPrice=7.11,
            m_nVolumeTraded=traded,
            m_dTradedPrice=7.11 if traded else 0.0,
            m_nOrderStatus=status,
            m_nOffsetFlag=48,
            m_nDirection=48,
            m_nOrderPriceType=50,
            m_strInsertDate=clock.strftime("%Y%m%d"),
            m_strInsertTime=clock.strftime("%H%M%S"),
            m_strRemark="备注",
            m_dCancelAmount=0.0,
        )
        if old is not None:
            fields["m_strInsertTime"] = old["m_strInsertTime"]
            self.now["order"].remove(old)
        self.now["order"].append(fields)
        return fields

    def fill(self, number, volume):
        clock = datetime.datetime.now(SHANGHAI)
        fields = self.head()
        fields.update(
            m_strOrderSysID=str(number),
            m_strTradeID=f"T{len(self.now['deal']) + 1}",
            m_dPrice=7.11,
            m_nVolume=volume,
            m_dTradeAmount=7.11 * volume,
            m_dCommission=5.0,
            m_nOffsetFlag=48,
            m_nDirection=48,
            m_strTradeDate=clock.strftime("%Y%m%d"),
            m_strTradeTime=clock.strftime("%H%M%S"),
            m_strRemark="备注",
        )
        self.now["deal"].append(fields)
        held = self.head()
        volume += sum(each["m_nVolume"] for each in self.now["position"])
        held.update(m_nVolume=volume, m_nCanUseVolume=0, m_nOnRoadVolume=volume, m_dOpenPrice=7.11, m_dMarketValue=1.0)
        self.now["position"] = [held]
        return fields


class Terminal:
    def __init__(self, options):
        self.options = options
        self.thread = threading.get_ident()
        self.broker = Broker(options.broker, options.account)
        self.context = (OldContextInfo if options.plain else ContextInfo)(self)
        self.space = {}
        self.timers = []
        self.subscriptions = {}
        self.accounts = []
        self.number = 0
        self.count = 1000
        self.last_bar = False
        self.commands = queue.Queue()

    def mine(self, name):
        """Fail on a thread that is not the terminal's."""
        if threading.get_ident() != self.thread:
            say("foreign_thread", function=name)
            raise RuntimeError(f"{name} was called on a thread of the strategy")

    def subscribe(self, codes, period, form, callback):
        self.number += 1
        self.subscriptions[self.number] = (codes, period, form, callback)
        return self.number

    def start(self):
        """Execute the file, which is in GBK, and call init and the bars of the past."""
        with open(self.options.strategy, "rb") as file:
            code = compile(file.read(), "strategy", "exec")
        self.space = {"__name__": "strategy"}
        if not self.options.editor:
            self.space.update(account=self.options.account, accountType="STOCK")
        if not self.options.plain:
            self.space.update(subscribe_formula=self.subscribe_formula, unsubscribe_formula=self.unsubscribe_formula)
            self.space.update(download_history_data=self.download_history_data)
        self.space.update(get_trade_detail_data=self.get_trade_detail_data)
        exec(code, self.space)
        self.init()

    def init(self):
        self.accounts = []
        self.call(self.space["init"], self.context)
        for last in (False, False, True):
            self.last_bar = last
            self.call(self.space["handlebar"], self.context)

    def call(self, function, *arguments):
        """Call the strategy; what it raises is printed, and the terminal goes on."""
        if function is None:
            return
        try:
            function(*arguments)
        except Exception:
            say("raised", text=traceback.format_exc())
        # Values that a strategy has stored there are rolled back.
        for name in [name for name in vars(self.context) if name != "_terminal"]:
            say("stored", name=name)
            delattr(self.context, name)

    def subscribe_formula(
        self, name, code, period, start="", end="", count=-1, dividend_type="none", params=None, callback=None
    ):
        self.mine("subscribe_formula")
        if name != "MA" or code not in CODES:
            return -1
        return self.subscribe((code,), "formula", "dict", callback)

    def unsubscribe_formula(self, number):
        self.mine("unsubscribe_formula")
        return self.subscriptions.pop(number, None) is not None

    def download_history_data(self, code, period, start, end, incrementally=None):
        self.mine("download_history_data")
        assert period in ("tick", "1m", "5m", "1d"), period
        if code not in CODES:
            raise ValueError("no data of " + code)

    def get_trade_detail_data(self, account, kind, what, strategy=""):
        self.mine("get_trade_detail_data")
        if account != self.options.account or kind.upper() != "STOCK":
            return []
        return [Record(fields) for fields in self.broker.now[what.lower()]]

    def push(self, name, fields):
        """Call a callback of the account."""
        if self.options.editor or self.options.account not in self.accounts:
            return
        record = Record(fields)
        self.call(self.space.get(name), self.context, record)
        record.free()

    def quotes(self):
        """Call back what is subscribed."""
        self.count += 1
        for codes, period, form, callback in list(self.subscriptions.values()):
            if period == "whole":
                self.call(callback, {code: tick(code, self.count) for code in codes})
            elif period == "formula":
                self.call(callback, {"timelist": [int(time.time() * 1000)], "outputs": {"MA1": [float(self.count)]}})
            else:
                make = tick if period in ("tick", "l2quote") else bar if period in BARS else detail
                for code in codes:
                    row = make(code, self.count)
                    value = {name: [each] for name, each in row.items()} if form == "list" else row
                    self.call(callback, {code: value if form else Frame([row])})

    def command(self, what):
        broker = self.broker
        if what == "order":
            number = 7000 + len(broker.now["order"])
            order = broker.order(number, 50)
            broker.assets(900000.0, 100000.0)
            broker.save()
            self.push("order_callback", order)
            self.push("account_callback", broker.now["account"][0])
        elif what == "fill":
            # The oldest order that is not filled: its first half, then the rest.
            order = next(each for each in broker.now["order"] if each["m_nVolumeTraded"] < 200)
            number, traded = int(order["m_strOrderSysID"]), order["m_nVolumeTraded"] + 100
            fill = broker.fill(number, 100)
            order = broker.order(number, 56 if traded == 200 else 55, traded)
            broker.assets(1000000.0 - 711.0 * len(broker.now["deal"]), 0.0)
            broker.save()
            self.push("deal_callback", fill)
            self.push("order_callback", order)
            self.push("position_callback", broker.now["position"][0])
            self.push("account_callback", broker.now["account"][0])
        elif what == "error":
            order = {"accountID": self.options.account, "orderCode": "SH601898", "strategyName": "s_&&&_r"}
            if not self.options.editor:
                self.call(self.space["orderError_callback"], self.context, Record(order), "资金不足")
        elif what == "again":
            # A broker calls back all of the day again after its own reconnection.
            for fill in broker.now["deal"]:
                self.push("deal_callback", fill)
            for order in broker.now["order"]:
                self.push("order_callback", order)
        elif what == "rerun":
            self.start()
        elif what == "init":
            self.init()
        elif what == "stop":
            self.call(self.space.get("stop"), self.context)
        say("done", command=what, quotes=self.count, subscriptions=len(self.subscriptions))

    def run(self):
        threading.Thread(target=self.read, daemon=True).start()
        self.start()
        say("started", version=list(sys.version_info[:2]))
        due = time.monotonic()
        while True:
            now = time.monotonic()
            for timer in self.timers:
                if now >= timer[0]:
                    timer[0] = now + timer[1]
                    self.call(timer[2].get(timer[3]), self.context)
            if now >= due and self.options.quotes:
                due = now + self.options.quotes
                self.quotes()
            try:
                command = self.commands.get(timeout=min(0.005, self.options.quotes or 1))
            except queue.Empty:
                continue
            if command == "end":
                return
            self.command(command)

    def read(self):
        for line in sys.stdin:
            self.commands.put(json.loads(line))
        self.commands.put("end")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("strategy")
    parser.add_argument("--account", default="1000000365")
    parser.add_argument("--broker", required=True, help="File of the account.")
    parser.add_argument("--quotes", type=float, default=0.1, help="Seconds between quotes; 0: none.")
    parser.add_argument("--level2", action="store_true", help="The account may have level 2.")
    parser.add_argument("--editor", action="store_true", help="Run as the editor does.")
    parser.add_argument("--plain", action="store_true", help="An older terminal: no formulas, no downloads, frames.")
    Terminal(parser.parse_args()).run()


if __name__ == "__main__":
    main()
