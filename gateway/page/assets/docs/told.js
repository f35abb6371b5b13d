// What the documents tell of a message, a field or a URL, in the language of the page.

import {element} from "../parts/element.js";
import {setting} from "../parts/settings.js";
import {CHINESE} from "./chinese.js";

/** Return the first paragraph of a text of the documents, with what is in backticks as code. */
export function told(text) {
    const first = (text ?? "").split("\n\n")[0].replace(/\s+/g, " ").trim();
    const shown = setting("language") === "zh" ? CHINESE.get(first) ?? first : first;
    return shown.split(/`+/).map((part, at) => (at % 2 ? element("code", {}, part) : part));
}
