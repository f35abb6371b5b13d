// Elements of the document, made without texts that are parsed: nothing that came with the data becomes markup.

const SVG = "http://www.w3.org/2000/svg";

/** Return a new element. `given` has attributes, `on` with listeners, `class`, and `label`: the name of its text. */
export function element(tag, given = {}, ...children) {
    return filled(document.createElement(tag), given, children);
}

/** Return a new element of a drawing. */
export function drawing(tag, given = {}, ...children) {
    return filled(document.createElementNS(SVG, tag), given, children);
}

function filled(made, given, children) {
    for (const [name, value] of Object.entries(given)) {
        if (value === undefined || value === null || value === false) continue;
        if (name === "on") {
            for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
        } else if (name === "label") {
            made.dataset.label = value;
        } else if (name === "hint") {
            made.dataset.hint = value;
        } else {
            made.setAttribute(name, value === true ? "" : value);
        }
    }
    made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
    return made;
}

/** A text that is changed in place; the document is touched only if it differs. */
export class Text {
    constructor(shown = "") {
        this.node = document.createTextNode(shown);
        this.shown = shown;
    }

    show(text) {
        if (text !== this.shown) {
            this.shown = text;
            this.node.nodeValue = text;
        }
    }
}

/** Set an attribute if it differs; null removes it. */
export function mark(of, name, value) {
    if (value === null || value === undefined || value === false) {
        if (of.hasAttribute(name)) of.removeAttribute(name);
    } else if (of.getAttribute(name) !== String(value)) {
        of.setAttribute(name, value);
    }
}

/** Return a drawing of one of the page's icons. */
export function icon(path, size = 16) {
    const shape = drawing("path", {d: path, fill: "none", stroke: "currentColor", "stroke-width": 1.6, "stroke-linecap": "round", "stroke-linejoin": "round"});
    return drawing("svg", {viewBox: "0 0 16 16", width: size, height: size, "aria-hidden": "true", class: "icon"}, shape);
}

export const ICONS = {
    sun: "M8 5.2a2.8 2.8 0 1 0 0 5.6 2.8 2.8 0 0 0 0-5.6zM8 1.5v1M8 13.5v1M1.5 8h1M13.5 8h1M3.4 3.4l.7.7M11.9 11.9l.7.7M3.4 12.6l.7-.7M11.9 4.1l.7-.7",
    add: "M8 3v10M3 8h10",
    close: "M4 4l8 8M12 4l-8 8",
    copy: "M5.5 5.5v-3h8v8h-3M2.5 5.5h8v8h-8z",
    drag: "M6 4h.01M10 4h.01M6 8h.01M10 8h.01M6 12h.01M10 12h.01",
    key: "M10.5 2.5a3 3 0 1 0 0 6 3 3 0 0 0 0-6zM8.3 7.7l-5.8 5.8M4.5 11.5l1.6 1.6M6.2 9.8l1.3 1.3",
    moon: "M13 9.6A5.6 5.6 0 0 1 6.4 3a5.5 5.5 0 1 0 6.6 6.6z",
    pause: "M5.5 3.5v9M10.5 3.5v9",
    play: "M5 3.2v9.6L12.5 8z",
    send: "M2.5 8h10M8.5 4l4 4-4 4",
    back: "M10 3L5 8l5 5",
    bin: "M3 4.5h10M6 4.5v-2h4v2M4.5 4.5l.6 9h5.8l.6-9",
};
