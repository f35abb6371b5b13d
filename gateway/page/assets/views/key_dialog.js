// The dialog in which a person enters a key. The gateway checks it before it is used.

import {element, Text} from "../parts/element.js";
import {read} from "../parts/gateway.js";
import {hasKey, useKey} from "../parts/key.js";
import {label, text} from "../parts/language.js";
import {reasonOf} from "../parts/reports.js";

/** Ask for a key. */
export function keyDialog() {
    const told = new Text();
    const input = element("input", {id: "api-key", type: "password", autocomplete: "off", spellcheck: "false", maxlength: 8192, required: true});
    const enter = async (event) => {
        event.preventDefault();
        const given = input.value.trim();
        try {
            // A page answers a wrong key with 401, whoever asks.
            await read("healthz", {key: given});
        } catch (unserved) {
            told.show(unserved.status === 0 ? text("away") : unserved.status === 401 ? text("key.wrong") : reasonOf(unserved.message));
            input.setAttribute("aria-invalid", "true");
            return;
        }
        useKey(given);
        dialog.close();
    };
    const forget = () => {
        useKey("");
        dialog.close();
    };
    const dialog = element("dialog", {class: "dialog", "aria-labelledby": "key-title"},
        element("form", {on: {submit: enter}},
            element("h2", {id: "key-title", label: "key.title"}),
            element("p", {label: "key.told"}),
            element("label", {for: "api-key", label: "key.label"}),
            input,
            element("p", {class: "wrong", role: "alert"}, told.node),
            element("div", {class: "actions"},
                hasKey() ? element("button", {type: "button", class: "button", label: "key.forget", on: {click: forget}}) : null,
                element("button", {type: "button", class: "button", label: "cancel", on: {click: () => dialog.close()}}),
                element("button", {type: "submit", class: "button first", label: "key.use"}))));
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    label(dialog);
    dialog.showModal();
}
