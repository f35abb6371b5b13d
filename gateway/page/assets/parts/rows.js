// A table of few rows that are updated in place: a row for each key, and a text that changes for each cell.

import {element, mark, Text} from "./element.js";
import {label} from "./language.js";

export class Rows {
    /** Make the rows in `body`, a `<tbody>`, of `columns`: `{of(item), class(item), make(item)}` each. */
    constructor(body, columns) {
        this.body = body;
        this.columns = columns;
        this.rows = new Map();
    }

    /** Show `items` in this order; `key(item)` names the row of an item. */
    show(items, key) {
        const wanted = new Set();
        let place = this.body.firstChild;
        for (const item of items) {
            const name = key(item);
            wanted.add(name);
            let row = this.rows.get(name);
            if (!row) {
                row = this.make(item);
                this.rows.set(name, row);
            }
            this.write(row, item);
            if (row.element === place) place = place.nextSibling;
            else this.body.insertBefore(row.element, place);
        }
        for (const [name, row] of this.rows) {
            if (!wanted.has(name)) {
                row.element.remove();
                this.rows.delete(name);
            }
        }
    }

    make(item) {
        const cells = this.columns.map((column) => {
            const text = column.of ? new Text() : null;
            const cell = element(column.head ? "th" : "td", {scope: column.head ? "row" : null, class: column.kind}, text ? text.node : column.make(item));
            return {cell, text};
        });
        const row = element("tr", {}, cells.map(({cell}) => cell));
        label(row);
        return {element: row, cells};
    }

    write(row, item) {
        this.columns.forEach((column, at) => {
            const {cell, text} = row.cells[at];
            if (text) text.show(column.of(item));
            if (column.mark) mark(cell, "data-mark", column.mark(item));
        });
    }
}

/** Return a `<table>` with a head of the texts with these names, and its body. */
export function table(label, columns) {
    const body = element("tbody");
    const head = element("tr", {}, columns.map((column) => element("th", {scope: "col", class: column.kind, label: column.name})));
    return {table: element("table", {"data-hint": label}, element("thead", {}, head), body), rows: new Rows(body, columns)};
}
