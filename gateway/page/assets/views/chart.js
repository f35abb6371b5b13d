// The chart of one code: the day's line with its average price, or candles of a period; the volume below.

import {element, mark, Text} from "../parts/element.js";
import {draw} from "../parts/frame.js";
import {label, onLanguage, text} from "../parts/language.js";
import {look, onLook} from "../parts/look.js";
import {clock, date, large, places, price} from "../parts/numbers.js";
import {quotes} from "../parts/quotes.js";
import {reasonOf, refusalOf} from "../parts/reports.js";
import {Socket} from "../parts/socket.js";
import {Candles} from "./candles.js";
import {Course} from "./course.js";

const PERIODS = ["line", "1m", "5m", "15m", "30m", "60m", "1d", "1w", "1mon"];
const DAYS = new Set(["1d", "1w", "1mon"]);
// The share of the chart's height that the volume takes.
const BELOW = 0.24;

export class Chart {
    constructor() {
        this.code = "";
        this.period = "line";
        this.series = new Course();
        this.plot = null;
        this.note = new Text();
        this.read = new Text();
        this.socket = new Socket("ws/realtime", {
            open: () => this.subscribe(),
            frame: (frame) => this.take(frame),
            state: () => this.tell(),
        });
        this.tabs = element("div", {class: "segments", role: "group", "data-hint": "chart.period"}, PERIODS.map((period) =>
            element("button", {type: "button", label: `period.${period}`, "data-period": period, "aria-pressed": String(period === "line"), on: {click: () => this.choose(period)}})));
        this.box = element("div", {class: "canvas", role: "img", "data-hint": "chart"});
        this.element = element("section", {class: "panel chart", "aria-labelledby": "chart-title"},
            element("header", {class: "panel-head"}, element("h3", {id: "chart-title", label: "view.chart"}), this.tabs),
            element("div", {class: "plot"}, element("p", {class: "read soft"}, this.read.node), this.box),
            element("p", {class: "note", role: "status"}, this.note.node));
        this.draw = this.draw.bind(this);
        new ResizeObserver(() => this.fit()).observe(this.box);
        onLook(() => this.rebuild());
        onLanguage(() => this.rebuild());
    }

    follow(code) {
        this.code = code;
        this.begin();
    }

    choose(period) {
        this.period = period;
        for (const each of this.tabs.children) mark(each, "aria-pressed", String(each.dataset.period === period));
        this.begin();
    }

    begin() {
        this.series = this.period === "line" ? new Course() : new Candles(this.period);
        this.beginning = null;
        this.refusal = "";
        this.rebuild();
        if (this.code) this.socket.open();
    }

    resume() {
        if (this.socket.state === "closed" && this.code) this.begin();
    }

    pause() {
        this.socket.close();
    }

    subscribe() {
        this.series.clear();
        const fields = this.series.fields;
        this.socket.send({action: "subscribe", id: "chart", stocks: [this.code], period: this.period === "line" ? "tick" : this.period, start: "00:00", fields});
    }

    take(frame) {
        if (frame.type === undefined) {
            const records = frame[this.code];
            if (!records) return;
            for (const record of records) this.series.add(record);
            draw(this.draw);
        } else if (frame.type === "subscribed" && frame.id === "chart") {
            this.beginning = frame.start?.[this.code] ?? null;
            this.refusal = refusalOf(frame.rejected?.[0]);
            this.tell();
        } else if (frame.type === "error") {
            this.refusal = refusalOf(frame);
            this.tell();
        }
    }

    tell() {
        const {state, reason} = this.socket;
        if (state === "waiting" || state === "refused") this.note.show(text(`socket.${state}`, {reason: reasonOf(reason)}));
        else if (this.refusal) this.note.show(this.refusal);
        else if (this.beginning && !this.beginning.complete) this.note.show(this.beginning.from ? text("chart.since", {from: this.beginning.from.slice(0, 8)}) : text("chart.no_store"));
        else this.note.show("");
    }

    async rebuild() {
        this.plot?.destroy();
        this.plot = null;
        if (!this.box.clientWidth) return;
        const series = this.series;
        const {default: Plot} = await import("../uplot/uPlot.esm.js");
        // Something else may have been chosen while the library came.
        if (series !== this.series || this.plot || !this.box.clientWidth) return;
        this.plot = new Plot(this.options(Plot), this.data(), this.box);
        this.draw();
    }

    fit() {
        if (!this.box.clientWidth || !this.box.clientHeight) return;
        if (!this.plot) this.rebuild();
        else this.plot.setSize({width: this.box.clientWidth, height: this.box.clientHeight});
    }

    data() {
        return this.series.columns(this.close());
    }

    /** Return the close of the day before, from which the day's line is measured. */
    close() {
        return quotes.of.get(this.code)?.tick?.lastClose ?? 0;
    }

    draw() {
        if (!this.plot || !this.element.isConnected) return;
        this.plot.setData(this.data());
        if (this.plot.cursor.idx === null || this.plot.cursor.idx === undefined) this.readAt(this.series.times.length - 1);
    }

    shownTime(at) {
        const time = this.series.times[at];
        return DAYS.has(this.period) ? date(time) : clock(time).slice(0, this.series.step < 60_000 ? 8 : 5);
    }

    readAt(at) {
        if (at === null || at === undefined || at < 0 || !(at in this.series.times)) return this.read.show("");
        this.read.show(`${this.shownTime(at)}   ${this.series.read(at, (value) => price(value, places(this.code)), large, text)}`);
    }

    options(Plot) {
        const colours = look();
        const digits = places(this.code);
        const axis = {stroke: colours.soft, font: colours.font, ticks: {show: false}, grid: {stroke: colours.grid, width: 1}};
        return {
            width: this.box.clientWidth,
            height: this.box.clientHeight,
            padding: [26, 0, 0, 8],
            legend: {show: false},
            cursor: {points: {show: false}, drag: {x: false, y: false}, x: true, y: true},
            scales: {
                x: {time: false, range: (plot, low, high) => this.series.span(low, high)},
                y: {range: (plot, low, high) => this.series.range(low, high, BELOW, this.close())},
                volume: {range: (plot, low, high) => [0, (high || 1) / (BELOW - 0.04)]},
            },
            axes: [
                {...axis, size: 26, space: 70, values: (plot, marks) => marks.map((at) => (at > 0 && at in this.series.times ? this.shownTime(at) : ""))},
                {...axis, side: 1, size: 62, space: 34, values: (plot, marks) => {
                    // What is below the prices belongs to the volume.
                    const {min, max} = plot.scales.y;
                    return marks.map((each) => (each < min + (max - min) * BELOW ? "" : price(each, digits)));
                }},
            ],
            series: this.series.lines(Plot, colours),
            hooks: {
                drawAxes: [(plot) => this.series.paint(plot, colours, this.close())],
                setCursor: [(plot) => this.readAt(plot.cursor.idx ?? this.series.times.length - 1)],
            },
        };
    }
}
