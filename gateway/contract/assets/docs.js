// Shows both documents of this gateway as tables. Everything that comes from them is set as text, never as markup.

const main = document.getElementById("main");
const contents = document.getElementById("contents");
const status = document.getElementById("status");

/** Return an element with a class, its text, and elements in it. */
function make(tag, { text = "", name = "", id = "" } = {}, ...children) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (name) made.className = name;
  if (id) made.id = id;
  made.append(...children);
  return made;
}

/** Return a reference's last part, by which its schema is named. */
function nameOf(reference) {
  return reference.slice(reference.lastIndexOf("/") + 1);
}

/** Return a link to a schema of the page, or a text. */
function linkTo(reference) {
  const link = make("a", { text: nameOf(reference) });
  link.href = `#schema-${nameOf(reference)}`;
  return link;
}

/** Return the type of a schema in a few words, with links to the schemas that it names. */
function typeOf(schema) {
  const shown = make("span");
  if (!schema || typeof schema !== "object") return shown;
  if (schema.$ref) shown.append(linkTo(schema.$ref));
  else if (schema.const !== undefined) shown.append(JSON.stringify(schema.const));
  else if (schema.enum) shown.append(schema.enum.map((each) => JSON.stringify(each)).join(" | "));
  else if (schema.anyOf || schema.oneOf) {
    (schema.anyOf ?? schema.oneOf).forEach((each, place) => {
      if (place) shown.append(" | ");
      shown.append(typeOf(each));
    });
  } else if (schema.type === "array") {
    shown.append("array of ", schema.items ? typeOf(schema.items) : "any");
  } else if (schema.type === "object" && typeof schema.additionalProperties === "object") {
    shown.append("object of ", typeOf(schema.additionalProperties));
  } else shown.append(String(schema.type ?? "any"));
  return shown;
}

/** Return the limits and the default of a field. */
function limitsOf(schema, required) {
  const found = [required ? "required" : "optional"];
  if (schema.default !== undefined && schema.default !== null) found.push(`default ${JSON.stringify(schema.default)}`);
  if (schema.minimum !== undefined) found.push(`from ${schema.minimum}`);
  if (schema.maximum !== undefined) found.push(`to ${schema.maximum}`);
  if (schema.maxItems !== undefined) found.push(`at most ${schema.maxItems}`);
  if (schema.maxLength !== undefined) found.push(`at most ${schema.maxLength} characters`);
  return found.join(", ");
}

/** Return a table with the given head; each row is an array of texts and elements. */
function tableOf(head, rows) {
  const body = make("tbody");
  for (const row of rows) {
    body.append(make("tr", {}, ...row.map((cell) => (cell instanceof Node ? make("td", {}, cell) : make("td", { text: cell })))));
  }
  const heads = head.map((text) => {
    const cell = make("th", { text });
    cell.scope = "col";
    return cell;
  });
  const scroll = make("div", { name: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body));
  // A region that scrolls has to be reached by the keyboard.
  scroll.tabIndex = 0;
  return scroll;
}

/** Return the fields of an object as a table, or the type of another schema. */
function fieldsOf(schema) {
  const fields = Object.entries(schema.properties ?? {});
  if (!fields.length) return make("p", { name: "type" }, typeOf(schema));
  const required = new Set(schema.required ?? []);
  const rows = fields.map(([name, field]) => [
    make("code", { text: name }),
    make("span", { name: "type" }, typeOf(field)),
    limitsOf(field, required.has(name)),
    String(field.description ?? ""),
  ]);
  return tableOf(["field", "type", "", "meaning"], rows);
}

/** Return one item of a section, which the filter shows or hides as a whole. */
function itemOf(title, told, ...children) {
  const item = make("section", { name: "item" }, make("h3", {}, make("code", { text: title })));
  if (told) item.append(make("p", { text: told }));
  item.append(...children);
  return item;
}

/** Add a section of the page, with its line in the contents. */
function addSection(id, title, told, items) {
  const section = make("section", { id }, make("h2", { text: title }));
  if (told) section.append(make("p", { text: told }));
  section.append(...items);
  main.append(section);
  const link = make("a", { text: title });
  link.href = `#${id}`;
  contents.firstChild.append(make("li", {}, link));
}

/** Show the sockets: what each takes and what it sends. */
function showSockets(asyncapi) {
  for (const [name, channel] of Object.entries(asyncapi.channels)) {
    const items = [];
    for (const [action, heading] of [["receive", "A client asks"], ["send", "The gateway sends"]]) {
      for (const { $ref } of asyncapi.operations[`${name}.${action}`].messages) {
        const message = asyncapi.components.messages[nameOf($ref)];
        const payload = message.payload.$ref ? asyncapi.components.schemas[nameOf(message.payload.$ref)] : message.payload;
        items.push(itemOf(`${heading}: ${message.name}`, message.summary, fieldsOf(payload)));
      }
    }
    addSection(`socket-${name}`, channel.address, channel.summary, items);
  }
}

/** Show the URLs of plain HTTP with their parameters and answers. */
function showUrls(openapi) {
  const items = Object.entries(openapi.paths).flatMap(([path, methods]) =>
    Object.entries(methods)
      .filter(([, operation]) => operation.responses)
      .map(([method, operation]) => {
        const parts = [];
        const parameters = (operation.parameters ?? []).map((each) => [
          make("code", { text: each.name }),
          make("span", { name: "type" }, typeOf(each.schema)),
          `${each.in}, ${limitsOf(each.schema ?? {}, each.required)}`,
          String(each.description ?? ""),
        ]);
        if (parameters.length) parts.push(tableOf(["parameter", "type", "", "meaning"], parameters));
        const answers = Object.entries(operation.responses).map(([code, answer]) => {
          const types = make("span", { name: "type" });
          Object.entries(answer.content ?? {}).forEach(([type, { schema }], place) => {
            if (place) types.append("; ");
            types.append(`${type} `, typeOf(schema));
          });
          return [code, String(answer.description ?? ""), types];
        });
        parts.push(tableOf(["status", "meaning", "body"], answers));
        return itemOf(`${method.toUpperCase()} ${path}`, operation.summary, ...parts);
      }),
  );
  addSection("http", "HTTP", "", items);
}

/** Show the schemas that the tables above name. */
function showSchemas(...documents) {
  const schemas = Object.assign({}, ...documents.map((each) => each.components.schemas));
  const items = Object.entries(schemas)
    .sort(([one], [other]) => one.localeCompare(other))
    .map(([name, schema]) => {
      const item = itemOf(name, schema.description ?? "", fieldsOf(schema));
      item.id = `schema-${name}`;
      return item;
    });
  addSection("schemas", "Shapes", "What the tables above name.", items);
}

/** Hide the items without a word, and sections of which nothing is left. */
function filter(word) {
  for (const section of main.querySelectorAll(":scope > section")) {
    let left = 0;
    for (const item of section.querySelectorAll("section.item")) {
      item.hidden = !item.textContent.toLowerCase().includes(word) && !section.firstChild.textContent.includes(word);
      left += !item.hidden;
    }
    section.hidden = left === 0;
  }
}

async function load(path) {
  const response = await fetch(path, { cache: "no-store" });
  if (!response.ok) throw new Error(`${path}: HTTP ${response.status}`);
  return response.json();
}

try {
  const [asyncapi, openapi] = await Promise.all([load("/asyncapi.json"), load("/openapi.json")]);
  contents.append(make("ul"));
  document.getElementById("version").textContent = asyncapi.info.version;
  showSockets(asyncapi);
  showUrls(openapi);
  showSchemas(asyncapi, openapi);
  status.remove();
  document.getElementById("filter").addEventListener("input", (event) => filter(event.target.value.trim().toLowerCase()));
  // The place of the address exists only now.
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
} catch (error) {
  status.textContent = `The documents cannot be shown: ${error.message}`;
}
