// What the documents tell of a message, a field or a URL, in the language of the page.

import {setting} from "../parts/settings.js";
import {CHINESE} from "./chinese.js";

/** Return the first paragraph of a text of the documents. */
export function told(text) {
    const first = (text ?? "").split("\n\n")[0].replace(/\s+/g, " ").trim();
    return setting("language") === "zh" ? CHINESE.get(first) ?? first : first;
}
