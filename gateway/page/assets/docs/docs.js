// The page /docs: both documents of this gateway as tables, in the language of the browser.

import {element} from "../parts/element.js";
import {address} from "../parts/gateway.js";
import {onLanguage, start as startLanguage, label, text} from "../parts/language.js";
import * as appearance from "../parts/look.js";
import {languageTool, themeTool} from "../parts/tools.js";
import {fieldsOf, idOf, limitsOf, nameOf, tableOf, typeOf} from "./schema.js";
import {told} from "./told.js";

const byId = (id) => document.getElementById(id);
let documents = null;
let failure = "";

/** Return one item of a chapter, which the filter shows or hides as a whole. */
function itemOf(id, title, more, meaning, ...parts) {
    const head = element("h3", {}, element("code", {}, title), more ? element("span", {class: "soft"}, more) : null);
    return element("section", {class: "panel item", id}, head, meaning ? element("p", {}, meaning) : null, parts);
}

function chapterOf(id, title, meaning, items) {
    byId("contents").append(element("a", {href: `#${id}`}, title));
    return element("section", {class: "chapter", id}, element("h2", {}, title), meaning ? element("p", {}, meaning) : null, items);
}

/** Yield a chapter for each WebSocket: what it takes and what it sends. */
function* sockets({channels, operations, components}) {
    for (const [name, channel] of Object.entries(channels)) {
        const items = ["receive", "send"].flatMap((action) => operations[`${name}.${action}`].messages.map(({$ref}) => {
            const message = components.messages[nameOf($ref)];
            const {payload} = message;
            const schema = payload.$ref ? components.schemas[nameOf(payload.$ref)] : payload;
            return itemOf(`${name}-${nameOf($ref)}`, message.name, text(`docs.${action}`), told(message.summary), fieldsOf(schema, "socket"));
        }));
        yield chapterOf(name, channel.address, told(channel.summary), items);
    }
}

/** Return the chapter of plain HTTP: parameters and answers. The URLs of WebSockets have chapters of their own. */
function urls({paths}) {
    const items = Object.entries(paths).flatMap(([path, methods]) => Object.entries(methods)
        .filter(([, operation]) => !("101" in operation.responses))
        .map(([method, operation]) => {
            const parameters = (operation.parameters ?? []).map((each) => [
                element("code", {}, each.name), element("span", {class: "code"}, typeOf(each.schema ?? each.content?.["application/json"].schema, "http")),
                `${text(`docs.in_${each.in}`)}${text("docs.and")}${limitsOf(each.schema ?? {}, each.required)}`, told(each.description),
            ]);
            const answers = Object.entries(operation.responses).map(([code, answer]) => [
                element("code", {}, code), element("span", {class: "code"}, Object.entries(answer.content ?? {}).map(([type, {schema}], place) => [place ? "; " : "", `${type} `, typeOf(schema, "http")])), told(answer.description),
            ]);
            return itemOf(`${method}-${path}`, `${method.toUpperCase()} ${path}`, "", told(operation.summary),
                parameters.length ? tableOf(["docs.parameter", "docs.type", "docs.limits", "docs.meaning"], parameters) : null,
                tableOf(["docs.status", "docs.body", "docs.meaning"], answers));
        }));
    return chapterOf("http", "HTTP", text("docs.http"), items);
}

/** Return the chapter of the schemas that the tables of one document name. */
function schemas(of, {components}) {
    const items = Object.entries(components.schemas).sort(([one], [other]) => one.localeCompare(other))
        .map(([name, schema]) => itemOf(idOf(of, name), name, "", told(schema.description), fieldsOf(schema, of)));
    return chapterOf(`${of}-schemas`, text(`docs.schemas_${of}`), text("docs.schemas"), items);
}

function show() {
    label();
    byId("contents").replaceChildren();
    if (documents) {
        const [asyncapi, openapi] = documents;
        byId("version").textContent = asyncapi.info.version;
        byId("sections").replaceChildren(...sockets(asyncapi), urls(openapi), schemas("socket", asyncapi), schemas("http", openapi));
    }
    byId("status").textContent = failure ? text("docs.failed", {reason: failure}) : documents ? "" : text("docs.loading");
    filter();
}

/** Hide the items without the word of the filter, and chapters of which nothing is left. */
function filter() {
    const word = byId("filter").value.trim().toLowerCase();
    for (const chapter of byId("sections").children) {
        const whole = chapter.firstChild.textContent.toLowerCase().includes(word);
        let left = 0;
        for (const item of chapter.querySelectorAll(".item")) {
            item.hidden = !whole && !item.textContent.toLowerCase().includes(word);
            left += item.hidden ? 0 : 1;
        }
        chapter.hidden = left === 0;
    }
}

async function load(path) {
    const response = await fetch(address(path));
    if (!response.ok) throw new Error(`${path}: HTTP ${response.status}`);
    return response.json();
}

appearance.start();
themeTool(byId("theme"));
languageTool(byId("language"));
onLanguage(show);
startLanguage();
byId("filter").addEventListener("input", filter);
try {
    documents = await Promise.all([load("asyncapi.json"), load("openapi.json")]);
} catch (failed) {
    failure = failed.message;
}
show();
// The place of the address exists only now.
document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
