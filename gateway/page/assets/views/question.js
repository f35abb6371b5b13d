// A question that a person answers with yes or no.

import {element} from "../parts/element.js";
import {label} from "../parts/language.js";

/** Ask; return whether the answer is yes. */
export function confirmed(question) {
    return new Promise((answer) => {
        const dialog = element("dialog", {class: "dialog", "aria-labelledby": "question"},
            element("form", {method: "dialog"},
                element("p", {id: "question"}, question),
                element("div", {class: "actions"},
                    element("button", {value: "", class: "button", label: "cancel"}),
                    element("button", {value: "yes", class: "button first bad", label: "clients.end"}))));
        dialog.addEventListener("close", () => {
            dialog.remove();
            answer(dialog.returnValue === "yes");
        });
        document.body.append(dialog);
        label(dialog);
        dialog.showModal();
    });
}
