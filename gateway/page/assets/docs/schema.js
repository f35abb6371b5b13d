// A schema of the documents as elements. Everything that comes from them is set as text, never as markup.

import {element} from "../parts/element.js";
import {text} from "../parts/language.js";
import {told} from "./told.js";

/** Return the last part of a reference, by which its schema is named. */
export function nameOf(reference) {
    return reference.slice(reference.lastIndexOf("/") + 1);
}

/** Return the id of a schema on the page; both documents have names of their own. */
export function idOf(of, name) {
    return `${of}-${name}`;
}

/** Return the type of a schema in a few words, with links to the schemas of its document that it names. */
export function typeOf(schema, of) {
    const parts = [];
    if (!schema || typeof schema !== "object") return element("span");
    const choices = schema.anyOf ?? schema.oneOf;
    if (schema.$ref) parts.push(element("a", {href: `#${idOf(of, nameOf(schema.$ref))}`}, nameOf(schema.$ref)));
    else if (schema.const !== undefined) parts.push(JSON.stringify(schema.const));
    else if (schema.enum) parts.push(schema.enum.map((each) => JSON.stringify(each)).join(" | "));
    else if (choices) choices.forEach((each, place) => parts.push(place ? " | " : "", typeOf(each, of)));
    else if (schema.type === "array") parts.push(text("docs.array"), schema.items ? typeOf(schema.items, of) : text("docs.any"));
    else if (schema.type === "object" && typeof schema.additionalProperties === "object") parts.push(text("docs.object"), typeOf(schema.additionalProperties, of));
    else parts.push(String(schema.type ?? text("docs.any")));
    return element("span", {}, parts);
}

/** Return whether a field is needed, its limits and its default. */
export function limitsOf(schema, required) {
    const found = [text(required ? "docs.required" : "docs.optional")];
    if (schema.default !== undefined && schema.default !== null) found.push(text("docs.default", {value: JSON.stringify(schema.default)}));
    if (schema.minimum !== undefined) found.push(`≥ ${schema.minimum}`);
    if (schema.maximum !== undefined) found.push(`≤ ${schema.maximum}`);
    if (schema.maxItems !== undefined) found.push(text("docs.items", {count: schema.maxItems}));
    if (schema.maxLength !== undefined) found.push(text("docs.characters", {count: schema.maxLength}));
    return found.join(text("docs.and"));
}

/** Return a table whose head has the texts with these names; each row is an array of texts and elements. */
export function tableOf(head, rows) {
    const heads = head.map((name) => element("th", {scope: "col"}, text(name)));
    const lines = rows.map((row) => element("tr", {}, row.map((cell) => element("td", {}, cell))));
    // A region that scrolls has to be reached by the keyboard.
    return element("div", {class: "scroll", tabindex: 0}, element("table", {}, element("thead", {}, element("tr", {}, heads)), element("tbody", {}, lines)));
}

/** Return the fields of an object as a table, or the type of another schema. */
export function fieldsOf(schema, of) {
    const fields = Object.entries(schema.properties ?? {});
    if (!fields.length) return element("p", {class: "type code"}, typeOf(schema, of));
    const required = new Set(schema.required ?? []);
    const rows = fields.map(([name, field]) => [
        element("code", {}, name), element("span", {class: "code"}, typeOf(field, of)), limitsOf(field, required.has(name)), told(field.description),
    ]);
    const without = fields.every(([, field]) => !field.description);
    if (without) for (const row of rows) row.pop();
    return tableOf(["docs.field", "docs.type", "docs.limits", ...(without ? [] : ["docs.meaning"])], rows);
}
