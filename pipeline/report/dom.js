// Make elements. Every text becomes a text node or an attribute's value; nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Return the element with this id. */
function at(id) {
  return document.getElementById(id);
}

/** Return a new element. A name of `attributes` that begins with "on" is a listener; a value null, undefined or false is left out. */
function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** Return a new element of a drawing. */
function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/** Return a <select> of [value, text] pairs that calls `changed` with the value chosen. */
function choice(label, pairs, value, changed) {
  const options = pairs.map(([one, text]) => make("option", { value: one, selected: String(one) === String(value) }, text));
  const select = make("select", { onchange: () => changed(select.value) }, options);
  select.dataset.label = label; // by which it gets the focus back when its view is drawn anew
  return make("label", {}, label, select);
}

/** Return a checkbox that calls `changed` with whether it is on. */
function checkbox(label, on, changed) {
  const box = make("input", { type: "checkbox", checked: on, onchange: () => changed(box.checked) });
  box.dataset.label = label;
  return make("label", {}, box, label);
}

/** Put new content into a view. The control in it that had the focus keeps it. */
function show(view, ...content) {
  const focused = view.contains(document.activeElement) ? document.activeElement.dataset.label : undefined;
  view.replaceChildren(...content.filter((one) => one !== null));
  if (focused === undefined) return;
  for (const control of view.querySelectorAll("[data-label]")) if (control.dataset.label === focused) control.focus();
}

/** Return a table of a heading and rows of texts or elements. Columns whose number is in `numbers` are aligned right. */
function plainTable(heading, rows, numbers = []) {
  const kind = (column) => (numbers.includes(column) ? "number" : null);
  return make("div", { class: "tablebox" }, make("table", { class: "plain" },
    make("thead", {}, make("tr", {}, heading.map((text, i) => make("th", { scope: "col", class: kind(i) }, text)))),
    make("tbody", {}, rows.map((row) => make("tr", {}, row.map((cell, i) =>
      i ? make("td", { class: kind(i) }, cell) : make("th", { scope: "row", class: kind(i) }, cell)))))));
}

/** Show a text beside the pointer, or hide it. */
function tip(text, event) {
  const box = at("tip");
  box.hidden = !text;
  if (!text) return;
  box.textContent = text;
  const { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
  box.style.top = `${event.clientY + 18 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 18}px`;
}
